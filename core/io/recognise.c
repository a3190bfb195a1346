/* What a file is that is not what was asked for (recognise.h). A user who names a compressed text,
 * a NumPy array or a stream of another width learns so at once, and what to do about it.
 *
 * Where the mark of a kind is short or could be text, more is asked than the mark: a stream of
 * tokens may begin with any bytes, and a good one must never be refused by chance. The constants
 * below are chosen for that; a file that no test recognises counts as what was asked for. */
#include "io/recognise.h"

#include <stdio.h>
#include <string.h>

/* A view says what is looked at, what was wanted of it, and where the words go. */
typedef struct view {
  const unsigned char *p; /* the first n bytes of the file */
  size_t n;
  uint64_t size; /* bytes of the whole file */
  bk_wanted wanted;
  char *words;
  size_t room;
} view;

/* The number is little-endian. The caller has seen that all of its bytes are there. */
static uint64_t number_at(const view *v, size_t at, int bytes) {
  uint64_t sum = 0;
  for (int i = bytes - 1; i >= 0; i--) sum = sum << 8 | v->p[at + (size_t)i];
  return sum;
}

/* The answer is false where the bytes would lie past the end of the sample. */
static bool has(const view *v, size_t at, const void *bytes, size_t count) {
  return v->n >= at + count && memcmp(v->p + at, bytes, count) == 0;
}

/* These are groups of what may be wanted, because some tests make sense for one group only. */
static bool wants_uint16(const view *v) {
  return v->wanted == BK_WANTED_UINT16 || v->wanted == BK_WANTED_UINT16_SAID;
}
static bool wants_tokens(const view *v) { return wants_uint16(v) || v->wanted == BK_WANTED_UINT32; }
static bool wants_data(const view *v) { return v->wanted == BK_WANTED_TEXT || wants_tokens(v); }

/* ---- what would be right ---- */

/* Families differ in what a user can do: unpack it, take the ids out, convert weights, save it
 * again from PyTorch, save its text, or nothing. */
typedef enum family { PACKED, ARRAY, WEIGHTS, PYTORCH, DOCUMENT, OTHER } family;

#define IDS_ALONE                                                                 \
  "write its token ids alone, as uint16 or uint32, into a .bin file (in Python: " \
  "ids.astype(\"uint16\").tofile(\"NAME.bin\"))"

/* What a user should do depends on the kind of file and on what was wanted of it. */
static const char *advice(family f, const view *v) {
  if (f == PACKED || f == OTHER || v->wanted == BK_WANTED_JSON) return NULL;
  if (f == DOCUMENT) return wants_data(v) ? "write its text into a text file first" : NULL;
  if (v->wanted == BK_WANTED_TENSORS)
    return f == PYTORCH ? "convert it to safetensors (in Python: safetensors.torch.save_file)"
                        : "convert it to safetensors first";
  if (f == ARRAY) return IDS_ALONE ", or its text into a text file";
  return f == PYTORCH ? IDS_ALONE
                      : "it holds a model's weights; give the text or the tokens to read";
}

/* Writes "what; advice". `cure` is the advice for this kind, whatever is wanted; NULL stands for
 * the advice of its family. */
static bool say(const view *v, const char *what, family f, const char *cure) {
  const char *more = cure ? cure : advice(f, v);
  snprintf(v->words, v->room, "%s%s%s", what, more ? "; " : "", more ? more : "");
  return true;
}

/* ---- kinds that a few bytes in one place show ---- */

/* `count` bytes at offset `at` that show a kind of file. */
typedef struct mark {
  const char *bytes;
  size_t count, at;
  const char *what;
  family family;
  const char *cure;
} mark;

#define MARK(text) text, sizeof text - 1

static const mark marks[] = {
    {MARK("\x1f\x8b\x08"), 0, "a gzip archive", PACKED, "unpack it first (gunzip)"},
    {MARK("\x1f\x9d\x90"), 0, "packed by compress", PACKED, "unpack it first (uncompress)"},
    {MARK("\x28\xb5\x2f\xfd"), 0, "a zstd archive", PACKED, "unpack it first (unzstd)"},
    {MARK("\xfd"
          "7zXZ\0"),
     0, "an xz archive", PACKED, "unpack it first (unxz)"},
    {MARK("1AY&SY"), 4, "a bzip2 archive", PACKED, "unpack it first (bunzip2)"},
    {MARK("\x04\x22\x4d\x18"), 0, "an lz4 archive", PACKED, "unpack it first (unlz4)"},
    {MARK("\x02\x21\x4c\x18"), 0, "an lz4 archive of the old form", PACKED,
     "unpack it first (unlz4)"},
    {MARK("\x5d\0\0\x80\0"), 0, "an lzma archive", PACKED, "unpack it first (unlzma)"},
    {MARK("7z\xbc\xaf\x27\x1c"), 0, "a 7z archive", PACKED, "unpack it first (7z x)"},
    {MARK("ustar\0"), 257, "a tar archive", PACKED, "unpack it first (tar -xf)"},
    {MARK("ustar  \0"), 257, "a tar archive", PACKED, "unpack it first (tar -xf)"},
    {MARK("\x93NUMPY"), 0, "a NumPy array (.npy), which begins with a header", ARRAY, NULL},
    {MARK("\x89HDF\r\n\x1a\n"), 0, "an HDF5 file", ARRAY, NULL},
    /* 0x15 is Thrift's first field of the first page or of the footer. */
    {MARK("PAR1\x15"), 0, "a Parquet file", ARRAY, NULL},
    {MARK("ARROW1\0\0"), 0, "an Arrow file (Feather)", ARRAY, NULL},
    {MARK("FEA1\0\0\0\0"), 0, "a Feather file of the old form", ARRAY, NULL},
    {MARK("SQLite format 3\0"), 0, "an SQLite database", ARRAY, NULL},
    {MARK("MMIDIDX\0\0"), 0, "an index of Megatron-LM (.idx)", OTHER,
     "the tokens are in the .bin file beside it"},
    {MARK("TNTIDX\0\0"), 0, "an index of fairseq (.idx)", OTHER,
     "the tokens are in the .bin file beside it"},
    {MARK("lmgg"), 0, "a model of llama.cpp of an old form", WEIGHTS, NULL},
    {MARK("tjgg"), 0, "a model of llama.cpp of an old form", WEIGHTS, NULL},
    {MARK("%PDF-"), 0, "a PDF document", DOCUMENT, NULL},
    {MARK("\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), 0, "an Office document of the old form", DOCUMENT,
     NULL},
    {MARK("\x89PNG\r\n\x1a\n"), 0, "a PNG picture", OTHER, NULL},
    {MARK("\xff\xd8\xff"), 0, "a JPEG picture", OTHER, NULL},
    {MARK("\x7f"
          "ELF"),
     0, "an ELF program or library", OTHER, NULL},
};

/* The first mark that fits decides; none is the beginning of another one in the same place. */
static bool is_marked(const view *v) {
  for (size_t i = 0; i < BK_COUNT(marks); i++)
    if (has(v, marks[i].at, marks[i].bytes, marks[i].count))
      return say(v, marks[i].what, marks[i].family, marks[i].cure);
  return false;
}

/* ---- kinds that take a closer look ---- */

/* Whether the `length` bytes from `begin` on end with that text. */
static bool ends_with(const view *v, size_t begin, size_t length, const char *text) {
  size_t tail = strlen(text);
  return length >= tail && has(v, begin + length - tail, text, tail);
}

/* Many formats are zip archives inside; the name of the first member tells which. */
static bool is_zip(const view *v) {
  if (has(v, 0, "PK\5\6", 4)) return say(v, "an empty zip archive", OTHER, NULL);
  if (!has(v, 0, "PK\3\4", 4) || v->n < 30) return false;
  size_t length = (size_t)number_at(v, 26, 2);
  if (ends_with(v, 30, length, "data.pkl"))
    return say(v, "a PyTorch file (torch.save)", PYTORCH, NULL);
  if (ends_with(v, 30, length, ".npy")) return say(v, "a NumPy archive (.npz)", ARRAY, NULL);
  if (ends_with(v, 30, length, "[Content_Types].xml"))
    return say(v, "an Office document", DOCUMENT, NULL);
  return say(v, "a zip archive", PACKED, "unpack it first (unzip)");
}

/* A word is made of lower-case letters and underscores, as the name of a Python module is. */
static bool is_word(const view *v, size_t at, size_t count) {
  for (size_t i = at; i < at + count; i++)
    if (i >= v->n || !(v->p[i] == '_' || (v->p[i] >= 'a' && v->p[i] <= 'z'))) return false;
  return true;
}

/* Pickles of protocols 2 and 3 begin with an object that is remembered ("]q", "}q") or with a
 * module's name ("c..."), those of 4 and 5 with a frame that fits the file. */
static bool is_pickle(const view *v) {
  static const char torch[] = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
  if (has(v, 0, torch, sizeof torch - 1))
    return say(v, "a PyTorch file of the old form (torch.save)", PYTORCH, NULL);
  if (v->n < 16 || v->p[0] != 0x80) return false;
  bool frame =
      (v->p[1] == 4 || v->p[1] == 5) && v->p[2] == 0x95 && number_at(v, 3, 8) <= v->size - 11;
  bool object = memchr("]})", v->p[2], 3) && v->p[3] == 'q' && v->p[4] == 0;
  bool name = v->p[2] == 'c' && is_word(v, 3, 5);
  if (!frame && !((v->p[1] == 2 || v->p[1] == 3) && (object || name))) return false;
  return say(v, "a pickled Python object", ARRAY, NULL);
}

/* An Arrow stream, as data sets of Hugging Face are: a continuation mark, the length of the first
 * message, and a flat buffer whose root is near. */
static bool is_arrow_stream(const view *v) {
  if (v->n < 16 || number_at(v, 0, 4) != 0xffffffff) return false;
  uint64_t length = number_at(v, 4, 4), root = number_at(v, 8, 4);
  if (length < 16 || length % 8 != 0 || length > v->size - 8 || root < 4 || root > 64 ||
      root % 2 != 0)
    return false;
  return say(v, "an Arrow stream", ARRAY, NULL);
}

/* Eight bytes of length, then a JSON object. No header in use comes near 2^32 bytes. */
static bool is_safetensors(const view *v) {
  if (v->wanted == BK_WANTED_TENSORS || v->n < 10 || v->p[8] != '{') return false;
  uint64_t length = number_at(v, 0, 8);
  bool member = v->p[9] == '"' || v->p[9] == '}' || v->p[9] == ' ' || v->p[9] == '\n';
  return member && length >= 2 && length >> 32 == 0 && length <= v->size - 8 &&
         say(v, "a safetensors file", WEIGHTS, NULL);
}

/* The version behind the mark is below 256, in either byte order. */
static bool is_gguf(const view *v) {
  if (!has(v, 0, "GGUF", 4) || !(has(v, 5, "\0\0\0", 3) || has(v, 4, "\0\0\0", 3))) return false;
  return say(v, "a GGUF file (llama.cpp)", WEIGHTS, NULL);
}

/* Such a file can be used once its header is cut off, so that the command to do it is given. */
static bool say_llmc_tokens(const view *v, int width) {
  unsigned long long said = number_at(v, 8, 4),
                     room = v->size < 1024 ? 0 : (v->size - 1024) / (unsigned)width;
  char fit[64] = "";
  if (said != room) snprintf(fit, sizeof fit, ", though the file has room for %llu", room);
  snprintf(v->words, v->room,
           "a token file of llm.c: a header of 1024 bytes, which says %llu tokens of uint%d%s; cut "
           "the header off: "
           "tail -c +1025 FILE >NAME.bin%s",
           said, 8 * width, fit, width == 4 ? ", and --set data_dtype=uint32" : "");
  return true;
}

/* Files of llm.c have a header of 256 int32. The first is the date on which the format was made,
 * the second a small version. */
static bool is_llmc(const view *v) {
  if (v->n < 12 || number_at(v, 4, 4) > 255) return false;
  switch (number_at(v, 0, 4)) {
    case 20240520: return say_llmc_tokens(v, 2);
    case 20240801: return say_llmc_tokens(v, 4);
    case 20240522:
      return say(v, "an evaluation file of llm.c (questions with endings)", OTHER,
                 "it holds no plain stream of tokens");
    case 20240326: return say(v, "a model of llm.c", WEIGHTS, NULL);
    default: return false;
  }
}

/* Pointers of Git LFS and of git-annex stand for a file that is elsewhere. Both formats limit the
 * size of a pointer. */
static bool is_pointer(const view *v) {
  static const char lfs[] = "version https://git-lfs.github.com/spec/v1",
                    hawser[] = "version https://hawser.github.com/spec/v1",
                    annex[] = "/annex/objects/";
  if (v->size < 1024 && (has(v, 0, lfs, sizeof lfs - 1) || has(v, 0, hawser, sizeof hawser - 1)))
    return say(v, "a pointer of Git LFS in place of the file itself", OTHER,
               "fetch it: git lfs pull");
  if (v->size < 32768 && has(v, 0, annex, sizeof annex - 1))
    return say(v, "a pointer of git-annex in place of the file itself", OTHER,
               "fetch it: git annex get");
  return false;
}

/* ---- UTF-16 and UTF-32 with their mark ---- */

static unsigned unit_at(const view *v, size_t at, bool big) {
  return big ? v->p[at] * 256u + v->p[at + 1] : v->p[at + 1] * 256u + v->p[at];
}

static bool is_space(unsigned c) { return (c >= '\t' && c <= '\r') || c == ' '; }

/* Whether the text from `begin` on is UTF-16: surrogates in pairs and no control characters. Where
 * most units are two bytes of ASCII it is not: the bytes are text themselves, and the mark is
 * there by chance. */
static bool is_utf16(const view *v, size_t begin, bool big) {
  size_t units = 0, pairs = 0;
  bool open = false; /* a high surrogate waits for its low one */
  if (v->size % 2 != 0) return false;
  for (size_t at = begin; at + 1 < v->n; at += 2, units++) {
    unsigned c = unit_at(v, at, big), low = c & 0xff, high = c >> 8;
    bool low_surrogate = c >= 0xdc00 && c < 0xe000;
    if (low_surrogate != open || (c < ' ' && !is_space(c)) || c >= 0xfffe) return false;
    open = c >= 0xd800 && c < 0xdc00;
    pairs += low >= ' ' && low < 0x7f && high >= ' ' && high < 0x7f;
  }
  return units > 0 && 2 * pairs < units;
}

/* Every unit must be a character: below 0x110000, no surrogate, no control character. */
static bool is_utf32(const view *v, bool big) {
  if (v->size % 4 != 0 || v->n < 8) return false;
  for (size_t at = 4; at + 3 < v->n; at += 4) {
    unsigned first = unit_at(v, at, big), second = unit_at(v, at + 2, big);
    unsigned high = big ? first : second, low = big ? second : first;
    if (high > 0x10 ||
        (high == 0 && ((low >= 0xd800 && low < 0xe000) || (low < ' ' && !is_space(low)))))
      return false;
  }
  return true;
}

/* A stream of tokens may begin with 65279, which is the mark of UTF-16. Many more characters must
 * agree before a stream is taken for text. */
static bool is_wide_text(const view *v) {
  bool stream = wants_tokens(v);
  if (!stream && ((has(v, 0, "\xff\xfe\0\0", 4) && is_utf32(v, false)) ||
                  (has(v, 0, "\0\0\xfe\xff", 4) && is_utf32(v, true))))
    return say(v, "text in UTF-32", OTHER, "convert it to UTF-8 first (iconv -f UTF-32 -t UTF-8)");
  if (stream && v->n < 128) return false;
  if ((has(v, 0, "\xff\xfe", 2) && is_utf16(v, 2, false)) ||
      (has(v, 0, "\xfe\xff", 2) && is_utf16(v, 2, true)))
    return say(v, "text in UTF-16", OTHER, "convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)");
  return false;
}

/* ---- text or not ---- */

typedef struct census {
  /* Bytes below 32 that texts do not have: all but \b \t \n \v \f \r and the escape of
   * terminals. */
  size_t control;
  size_t kinds;    /* how many of those 25 values occur */
  size_t distinct; /* how many of the 256 values of a byte occur */
  size_t beyond;   /* bytes beyond ASCII */
  size_t invalid;  /* bytes that are not UTF-8 */
} census;

/* One pass over the sample counts what the tests for text and for binary data need. */
static void take_census(const view *v, census *c) {
  bool seen[256] = {false};
  *c = (census){0};
  for (size_t i = 0; i < v->n; i++) {
    unsigned char b = v->p[i];
    bool control = b < ' ' && !(b >= '\b' && b <= '\r') && b != 0x1b;
    c->control += control;
    c->kinds += control && !seen[b];
    c->distinct += !seen[b];
    c->beyond += b >= 0x80;
    seen[b] = true;
  }
  size_t end = v->n < v->size && v->n > 3 ? v->n - 3 : v->n; /* the sample may cut a character */
  for (size_t at = 0, length; at < end; at += length ? length : 1) {
    length = bk_utf8_length(v->p + at, v->n - at);
    c->invalid += length == 0;
  }
}

/* UTF-16 without its mark: spaces and line ends have a NUL on one side, always the same. Text that
 * is valid UTF-8 beyond ASCII is not looked at. */
static bool is_unmarked_utf16(const view *v, const census *c) {
  size_t nul[2] = {0};
  for (size_t i = 0; i < v->n; i++) nul[i % 2] += v->p[i] == 0;
  size_t all = nul[0] + nul[1];
  bool big = nul[0] > 0;
  bool utf8 = c->invalid == 0 && c->beyond > 0;
  if (utf8 || all < 8 || 128 * all < v->n || nul[big ? 1 : 0] > 0 || !is_utf16(v, 0, big))
    return false;
  snprintf(v->words, v->room,
           "text in UTF-16 without its mark, or a stream of uint16 tokens under a name that does "
           "not end in .bin; convert text to UTF-8 first "
           "(iconv -f UTF-16%s -t UTF-8)",
           big ? "BE" : "LE");
  return true;
}

/* In texts control characters are few, or, where they separate fields and records, of few kinds.
 * Random and packed bytes have one in ten, of all kinds; streams of tokens, programs and UTF-16
 * have more. The limits: more than three control characters in ten bytes; or, in 512 bytes at
 * least, more than one in 32 of twelve kinds or more. */
static bool is_binary(const view *v) {
  census c;
  if (v->n < 64) return false;
  take_census(v, &c);
  if (is_unmarked_utf16(v, &c)) return true;
  bool many = 10 * c.control > 3 * v->n,
       of_all_kinds = v->n >= 512 && 32 * c.control > v->n && c.kinds >= 12;
  if (!many && !of_all_kinds) return false;
  snprintf(v->words, v->room,
           "not text: of its first %zu bytes %zu are control characters; a stream of tokens needs "
           "a name that ends in .bin, and text in UTF-16 "
           "or UTF-32 has to be converted to UTF-8",
           v->n, c.control);
  return true;
}

/* The bytes have nothing that a text does not have, over a length in which tokens would have had
 * something. There must be at least 128 bytes without a control character and with ten different
 * values. A token of 16 bits below 8192 has a high byte below 32, which is a control character more
 * often than not; larger ones are rarely UTF-8 for 1024 bytes. */
static bool is_text(const view *v) {
  census c;
  if (v->n < 128) return false;
  take_census(v, &c);
  if (c.control > 0 || c.distinct < 10 || (c.invalid > 0 && v->n < 1024)) return false;
  return say(
      v, "text", OTHER,
      wants_tokens(v) ? "under a name that does not end in .bin its bytes are the tokens" : NULL);
}

/* ---- streams of tokens read at the wrong width ---- */

/* A stream seen as rows of 8 bytes, each four words of 16 bits. Numbers that are wider than the
 * tokens show by words that are always 0 or nearly so. */
typedef struct places {
  size_t rows;
  size_t nonzero[4], wide[4] /* words that are 256 and more */;
  size_t tiny[16]; /* how often each of 0 to 15 occurs in the second and the fourth word */
} places;

/* Read as little-endian words; big-endian numbers then show by the other halves being 0. */
static void look_at_places(const view *v, places *s) {
  *s = (places){.rows = v->n / 8};
  for (size_t i = 0; i < 4 * s->rows; i++) {
    unsigned word = unit_at(v, 2 * i, false);
    s->nonzero[i % 4] += word != 0;
    s->wide[i % 4] += word >= 256;
    if (i % 2 == 1 && word < 16) s->tiny[word]++;
  }
}

/* `used` counts the words that would hold numbers and are not 0, of which there must be one in
 * eight at least; `others` counts the words that must all be 0. One in eight keeps a stream of
 * mostly zeros (padding) from being taken for a wider type. */
static bool only(const places *s, size_t used, size_t words_a_row, size_t others) {
  return others == 0 && 8 * used >= words_a_row * s->rows;
}

/* Ids of a vocabulary above 65536, stored as 32 or 64 bits: the upper halves are below 16 and of
 * few kinds, and the lower halves (`words_a_row` of them in a row) use their whole range. A quarter
 * of the upper halves must be one value, and a quarter of the lower ones 256 and more: a stream of
 * pairs of an id and a small number looks nearly the same, which is why this counts last. */
static bool has_tiny_halves(const places *s, size_t words_a_row) {
  size_t all = 0, most = 0;
  for (int i = 0; i < 16; i++) {
    all += s->tiny[i];
    if (s->tiny[i] > most) most = s->tiny[i];
  }
  return all == 2 * s->rows && 4 * most >= all &&
         4 * (s->wide[0] + s->wide[2]) >= words_a_row * s->rows;
}

/* The words end with the line of Python that makes a right file of it. */
static bool say_width(const view *v, const char *what, const char *from) {
  const char *to = wants_uint16(v) ? "u2" : "u4";
  snprintf(v->words, v->room,
           "a stream of %s, not of %s tokens; convert it, in Python with numpy.fromfile(FILE, "
           "\"%s\").astype(\"<%s\").tofile(\"NAME.bin\")",
           what, wants_uint16(v) ? "uint16" : "uint32", from, to);
  return true;
}

/* The file is good as it is; only the setting is wrong. */
static bool say_uint32(const view *v) {
  return say(
      v, "a stream of uint32 tokens, not of uint16: every second number would be 0 or nearly so",
      OTHER, "set data_dtype=uint32 (--set data_dtype=uint32)");
}

/* Whether the numbers, read as floating-point numbers of `width` bytes, are all whole, from 0 to
 * 2^31, and not all 0. There must be 32 numbers, an eighth of them not 0. */
static bool are_floats(const view *v, size_t width) {
  size_t nonzero = 0, count = v->n / width;
  for (size_t i = 0; i < count; i++) {
    double x;
    float f;
    if (width == 4) memcpy(&f, v->p + 4 * i, 4), x = (double)f;
    else memcpy(&x, v->p + 8 * i, 8);
    if (!(x >= 0 && x < 0x1p31) || x != (double)(int64_t)x) return false;
    nonzero += x != 0;
  }
  return count >= 32 && v->size % width == 0 && 8 * nonzero >= count;
}

static bool say_floats(const view *v, const char *what) {
  return say(v, what, OTHER,
             "its numbers are whole, but no token ids as they lie there: write them as uint16 or "
             "uint32 (in Python: ids.astype(\"uint16\").tofile(\"NAME.bin\"))");
}

/* Ids with negative numbers among them, used as padding or for targets to ignore: the upper halves
 * are 0 or all ones. `used` is the number of bytes that hold the id, `width` that of the number. At
 * most half of the numbers may be negative, and there must be 32. */
static bool are_signed(const view *v, size_t width, size_t used) {
  size_t rows = v->n / width, negative = 0, seen = 0;
  for (size_t i = 0; i < rows; i++) {
    const unsigned char *p = v->p + width * i;
    bool zero = true, ones = true, low = false;
    for (size_t b = 0; b < width; b++) {
      if (b < used) low = low || p[b] != 0;
      else zero = zero && p[b] == 0, ones = ones && p[b] == 0xff;
    }
    if (!zero && !ones) return false;
    negative += ones;
    seen += low;
  }
  return rows >= 32 && v->size % width == 0 && negative > 0 && 2 * negative <= rows &&
         8 * seen >= rows;
}

static bool say_signed(const view *v, const char *what) {
  return say(
      v, what, OTHER,
      "ids are not negative: leave such numbers out and write the others as uint16 or uint32");
}

/* The wider type is tried first, as in is_wider. */
static bool is_signed(const view *v) {
  if (are_signed(v, 8, 4))
    return say_signed(v, "a stream of 64-bit integers, some of them negative");
  return wants_uint16(v) && are_signed(v, 4, 2) &&
         say_signed(v, "a stream of 32-bit integers, some of them negative");
}

/* The order of the tests matters: a wide type comes before the narrow ones, whose tests its
 * numbers may pass too, and the weakest evidence (tiny upper halves) comes last, and only where
 * the user did not name the type. */
static bool is_wider(const view *v) {
  places s;
  const size_t *n = s.nonzero;
  bool narrow = wants_uint16(v), tiny = v->wanted != BK_WANTED_UINT16_SAID;
  look_at_places(v, &s);
  if (s.rows < (narrow ? 16u : 32u)) return false; /* fewer than 64 tokens show nothing */
  if (only(&s, n[0], 1, n[2] + n[3] + (narrow ? n[1] : 0)))
    return say_width(v, "64-bit integers", "<i8");
  if (are_floats(v, 8)) return say_floats(v, "a stream of float64");
  if (are_floats(v, 4)) return say_floats(v, "a stream of float32");
  if (is_signed(v)) return true;
  if (only(&s, n[3], 1, n[0] + n[1] + (narrow ? n[2] : 0)))
    return say_width(v, "big-endian 64-bit integers", ">i8");
  if (!narrow) return false;
  if (only(&s, n[1] + n[3], 2, n[0] + n[2])) return say_width(v, "big-endian uint32", ">u4");
  if (only(&s, n[0] + n[2], 2, n[1] + n[3])) return say_uint32(v);
  if (n[2] + n[3] == 0)
    return tiny && has_tiny_halves(&s, 1) && say_width(v, "64-bit integers", "<i8");
  return tiny && has_tiny_halves(&s, 2) && say_uint32(v);
}

/* ---- all of it ---- */

/* Kinds with a mark come first. Only then is the general nature of the bytes, text or stream,
 * judged against what is wanted. */
bool bk_recognise(const void *first, size_t count, uint64_t file_bytes, bk_wanted wanted,
                  char *words, size_t room) {
  const view v = {
      .p = first, .n = count, .size = file_bytes, .wanted = wanted, .words = words, .room = room};
  if (is_marked(&v) || is_zip(&v) || is_pickle(&v) || is_arrow_stream(&v) || is_safetensors(&v) ||
      is_gguf(&v) || is_llmc(&v) || is_pointer(&v) || is_wide_text(&v))
    return true;
  switch (wanted) {
    case BK_WANTED_TEXT: return is_binary(&v);
    case BK_WANTED_TENSORS: return is_text(&v);
    case BK_WANTED_JSON: return false;
    default: return is_text(&v) || is_wider(&v);
  }
}

/* ---- a stream that has failed the vocabulary ---- */

/* A reading is a way to see the same bytes as numbers, with its name and that which NumPy has for
 * it. */
typedef struct reading {
  const char *name, *numpy;
  int width;
  bool big;
} reading;

/* The number of tokens that are not below vocab_size. */
static size_t count_above(const unsigned char *p, size_t bytes, const reading *r,
                          int64_t vocab_size) {
  size_t width = (size_t)r->width, above = 0;
  for (size_t at = 0; at + width <= bytes; at += width) {
    uint64_t token = 0;
    for (size_t i = 0; i < width; i++) token = token << 8 | p[at + (r->big ? i : width - 1 - i)];
    above += token >= (uint64_t)vocab_size;
  }
  return above;
}

/* One wrong token among many right ones is just a wrong token: a quarter of them must be wrong
 * before another width is tried. The widest reading comes first, because any bytes are ids below
 * 65536 if they are read as uint16. */
bool bk_recognise_width(const void *stream, size_t bytes, int width, int64_t vocab_size,
                        char *words, size_t room) {
  static const reading readings[] = {
      {"64-bit integers", "<i8", 8, false}, {"big-endian 64-bit integers", ">i8", 8, true},
      {"uint32", "<u4", 4, false},          {"big-endian uint32", ">u4", 4, true},
      {"uint16", "<u2", 2, false},          {"big-endian uint16", ">u2", 2, true}};
  const reading present = {.width = width};
  if (4 * count_above(stream, bytes, &present, vocab_size) < bytes / (size_t)width) return false;
  for (size_t i = 0; i < BK_COUNT(readings); i++) {
    const reading *r = &readings[i];
    if (bytes == 0 || bytes % (size_t)r->width != 0 ||
        count_above(stream, bytes, r, vocab_size) > 0)
      continue;
    if (r->width < 8 && !r->big)
      snprintf(words, room, "read as %s every token is: set data_dtype=%s (--set data_dtype=%s)",
               r->name, r->name, r->name);
    else
      snprintf(words, room,
               "read as %s every token is: convert the file, in Python with numpy.fromfile(FILE, "
               "\"%s\").astype(\"<u%d\").tofile(\"NAME.bin\")",
               r->name, r->numpy, width);
    return true;
  }
  return false;
}
