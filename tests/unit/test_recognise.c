/* What files are by their contents: kinds, texts, streams; and a table of texts that must stay
 * texts. */
#include "tests/unit/unit.h"

#include "io/recognise.h"

typedef unsigned char byte;

static char words[BK_RECOGNISE_TEXT];

static bool seen(const void *bytes, size_t count, uint64_t size, bk_wanted wanted) {
  /* of its own size, so that the sanitizers see a read past its end */
  byte *copy = bk_alloc(ctx, count);
  memcpy(copy, bytes, count);
  words[0] = '\0';
  bool known = bk_recognise(copy, count, size, wanted, words, sizeof words);
  bk_free(ctx, copy);
  return known;
}

static void is(const void *bytes, size_t count, bk_wanted wanted, const char *part) {
  ck_assert_msg(seen(bytes, count, count, wanted), "not seen: %s", part);
  ck_assert_msg(strstr(words, part) != NULL, "expected \"%s\" in: %s", part, words);
}

static void is_fine(const void *bytes, size_t count, bk_wanted wanted, const char *what) {
  ck_assert_msg(!seen(bytes, count, count, wanted), "%s: %s", what, words);
}

/* ---- kinds ---- */

typedef struct sample {
  const char *bytes;
  size_t count;
  const char *part;
} sample;
#define SAMPLE(text, part) \
  { text, sizeof text - 1, part }

static const sample samples[] = {
    SAMPLE("\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"),
    SAMPLE("\x1f\x8b\x08\x08\x11\x22\x33\x44\x02\xff"
           "data.txt",
           "gzip"),
    SAMPLE("\x1f\x8b\x08\x04 and more of it", "gunzip"),
    SAMPLE("\x1f\x9d\x90 packed", "compress"),
    SAMPLE("\x28\xb5\x2f\xfd\x04\x88", "zstd"),
    SAMPLE("\x28\xb5\x2f\xfd\xa4 0123456789", "zstd"),
    SAMPLE("\x28\xb5\x2f\xfd\0\0", "unzstd"),
    SAMPLE("\xfd"
           "7zXZ\0\0\4",
           "an xz"),
    SAMPLE("\xfd"
           "7zXZ\0\0\1\x69",
           "an xz"),
    SAMPLE("\xfd"
           "7zXZ\0\0\x0a more",
           "unxz"),
    SAMPLE("BZh91AY&SY\1\2", "bzip2"),
    SAMPLE("BZh11AY&SY", "bzip2"),
    SAMPLE("BZh61AY&SY.......", "bunzip2"),
    SAMPLE("\x04\x22\x4d\x18\x64\x40", "lz4"),
    SAMPLE("\x04\x22\x4d\x18\x60\x70\x73", "lz4"),
    SAMPLE("\x02\x21\x4c\x18\1\0\0\0", "lz4"),
    SAMPLE("PK\3\4\x14\0\0\0\x08\0aaaabbbbccccdddd\x05\0\0\0a.txtXXXX", "unzip"),
    SAMPLE("PK\3\4\x14\0\0\0\x08\0aaaabbbbccccdddd\x05\0\0\0x.npyXXXX", "NumPy archive (.npz)"),
    SAMPLE("PK\3\4\0\0\0\x08\x08\0aaaabbbbccccdddd\x10\0\0\0archive/data.pklXXXX", "PyTorch"),
    SAMPLE("PK\3\4\x14\0\0\0\x08\0aaaabbbbccccdddd\x13\0\0\0[Content_Types].xmlXX", "Office"),
    SAMPLE("PK\3\4\x14\0\0\0\x08\0aaaabbbbccccdddd\xff\xff\0\0short", "zip archive"),
    SAMPLE("PK\5\6\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "empty zip"),
    SAMPLE("7z\xbc\xaf\x27\x1c\0\4", "7z"),
    SAMPLE("7z\xbc\xaf\x27\x1c\0\3......", "7z"),
    SAMPLE("7z\xbc\xaf\x27\x1c", "7z x"),
    SAMPLE("\x93NUMPY\1\0\x76\0{'descr': '<u2', 'fortran_order': False, 'shape': (3,), }\n",
           ".npy"),
    SAMPLE("\x93NUMPY\2\0\x76\0\0\0{'descr'", ".npy"),
    SAMPLE("\x93NUMPY\3\0", "NumPy array"),
    SAMPLE("\x89HDF\r\n\x1a\n\0\0\0\0", "HDF5"),
    SAMPLE("\x89HDF\r\n\x1a\n\2\x08\x08\0", "HDF5"),
    SAMPLE("\x89HDF\r\n\x1a\n", "HDF5"),
    SAMPLE("PAR1\x15\x04\x15\x80", "Parquet"),
    SAMPLE("PAR1\x15\0\x15\x0e\x15", "Parquet"),
    SAMPLE("PAR1\x15\2\x19\x2c", "Parquet"),
    SAMPLE("ARROW1\0\0\xff\xff\xff\xff", "Arrow"),
    SAMPLE("FEA1\0\0\0\0\1\2\3", "Feather"),
    SAMPLE("\xff\xff\xff\xff\x10\0\0\0\x10\0\0\0\0\0\x0a\0........", "Arrow stream"),
    SAMPLE("\x80\x02]q\0(K\1K\2K\3e.............", "pickled"),
    SAMPLE("\x80\x03}q\0X\1\0\0\0aq\1K\1s......", "pickled"),
    SAMPLE("\x80\x03"
           "cnumpy.core.multiarray\n_reco",
           "pickled"),
    SAMPLE("\x80\x04\x95\x09\0\0\0\0\0\0\0]\x94(K\1K\2e.", "pickled"),
    SAMPLE("\x80\x05\x95\x06\0\0\0\0\0\0\0}\x94(K\1s", "pickled"),
    SAMPLE("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M", "PyTorch"),
    SAMPLE("\x02\0\0\0\0\0\0\0{}", "safetensors"),
    SAMPLE("\x10\0\0\0\0\0\0\0{\"__metadata__\":{}", "safetensors"),
    SAMPLE("\x08\0\0\0\0\0\0\0{ }     more", "safetensors"),
    SAMPLE("GGUF\3\0\0\0\1\0\0\0\0\0\0\0", "GGUF"),
    SAMPLE("GGUF\2\0\0\0\x23\1", "GGUF"),
    SAMPLE("GGUF\0\0\0\3", "GGUF"),
    SAMPLE("MMIDIDX\0\0\1\0\0\0\0\0\0\0\x08", "Megatron"),
    SAMPLE("MMIDIDX\0\0\1", "Megatron"),
    SAMPLE("TNTIDX\0\0\1", "fairseq"),
    SAMPLE("SQLite format 3\0\x10\0\1\1", "SQLite"),
    SAMPLE("SQLite format 3\0", "SQLite"),
    SAMPLE("SQLite format 3\0\x04\0", "SQLite"),
    SAMPLE("%PDF-1.4\n", "PDF"),
    SAMPLE("%PDF-1.7\r\n%\xe2\xe3\xcf\xd3", "PDF"),
    SAMPLE("%PDF-2.0\n", "PDF"),
    SAMPLE("\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG"),
    SAMPLE("\xff\xd8\xff\xe0\0\x10JFIF", "JPEG"),
    SAMPLE("\xff\xd8\xff\xe1\1\2Exif", "JPEG"),
    SAMPLE("\x7f"
           "ELF\2\1\1\0",
           "ELF"),
    SAMPLE("\x7f"
           "ELF\1\1\1\0",
           "ELF"),
    SAMPLE("\x7f"
           "ELF\2\2\1",
           "ELF"),
    SAMPLE("version https://git-lfs.github.com/spec/v1\noid "
           "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n",
           "git lfs pull"),
    SAMPLE(
        "version https://git-lfs.github.com/spec/v1\next-0-foo sha256:ab\noid sha256:cd\nsize 1\n",
        "Git LFS"),
    SAMPLE("version https://git-lfs.github.com/spec/v1\r\noid sha256:ab\r\nsize 0\r\n", "Git LFS"),
    SAMPLE("/annex/objects/SHA256E-s5--ab.txt\n", "git annex get"),
    SAMPLE("/annex/objects/MD5-s17--cd", "git-annex"),
    SAMPLE("/annex/objects/WORM-s3-m4--x\n", "git-annex"),
};

START_TEST(kinds) {
  static const bk_wanted all[] = {BK_WANTED_TEXT, BK_WANTED_UINT16, BK_WANTED_UINT32,
                                  BK_WANTED_TENSORS, BK_WANTED_JSON};
  for (size_t i = 0; i < BK_COUNT(samples); i++)
    for (size_t w = 0; w < BK_COUNT(all); w++) {
      bool wanted = all[w] == BK_WANTED_TENSORS && strcmp(samples[i].part, "safetensors") == 0;
      if (wanted) is_fine(samples[i].bytes, samples[i].count, all[w], "a safetensors file");
      else is(samples[i].bytes, samples[i].count, all[w], samples[i].part);
    }
}
END_TEST

/* A mark that is cut, or stands in what is plainly a text, says nothing. */
START_TEST(not_kinds) {
  static const sample none[] = {
      SAMPLE("\x1f\x8b", "two bytes"),
      SAMPLE("PAR1 of the report", "a text"),
      SAMPLE("PK is a pair of letters", "a text"),
      SAMPLE("GGUF is a format", "a text"),
      SAMPLE("FEA1 and FEA2", "a text"),
      SAMPLE("BZh9 is what bzip2 files begin with", "a text"),
      SAMPLE("7z is an archiver", "a text"),
      SAMPLE("", "nothing"),
      SAMPLE("SQLite format 3 is in use since 2004", "a text"),
      SAMPLE("ARROW1 is the name", "a text"),
      SAMPLE("MMIDIDX", "a text"),
      SAMPLE("%PDF", "a text"),
      SAMPLE("\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff.....", "a frame past the end"),
      SAMPLE("\x80\x02\x03\x04 0123456789", "no object"),
      SAMPLE("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "ones"),
      SAMPLE("\xff\xfe", "a mark alone"),
      SAMPLE("\xff\xfe\xc0 bytes that begin with a mark, by chance!", "bytes"),
  };
  for (size_t i = 0; i < BK_COUNT(none); i++) {
    is_fine(none[i].bytes, none[i].count, BK_WANTED_TEXT, none[i].part);
    is_fine(none[i].bytes, none[i].count, BK_WANTED_UINT16, none[i].part);
  }
  static char about_lfs[2000] =
      "version https://git-lfs.github.com/spec/v1 is how a pointer begins, says this text, which "
      "is longer than any of them. ";
  memset(about_lfs + strlen(about_lfs), 'x', sizeof about_lfs - strlen(about_lfs));
  is_fine(about_lfs, sizeof about_lfs, BK_WANTED_TEXT, "a text about Git LFS");
}
END_TEST

START_TEST(tar) {
  byte block[1024] = "name.txt";
  memcpy(block + 257,
         "ustar\0"
         "00",
         8);
  is(block, sizeof block, BK_WANTED_TEXT, "tar");
  memcpy(block + 257, "ustar  \0", 8);
  is(block, sizeof block, BK_WANTED_UINT16, "tar -xf");
  is(block, 512, BK_WANTED_TENSORS, "tar");
  char text[600];
  memset(text, 'a', sizeof text);
  memcpy(text + 257, "ustar is a word", 15);
  is_fine(text, sizeof text, BK_WANTED_TEXT, "a text with the word");
}
END_TEST

static void put32(byte *to, uint32_t value) {
  for (int i = 0; i < 4; i++) to[i] = (byte)(value >> 8 * i);
}

START_TEST(llmc) {
  static const struct {
    uint32_t magic, version, tokens;
    size_t size;
    const char *part;
  } cases[] = {
      {20240520, 1, 500, 2024, "says 500 tokens of uint16; cut the header off: tail -c +1025"},
      {20240520, 1, 0, 1024, "says 0 tokens of uint16;"},
      {20240520, 1, 501, 2024, "says 501 tokens of uint16, though the file has room for 500"},
      {20240801, 7, 250, 2024,
       "says 250 tokens of uint32; cut the header off: tail -c +1025 FILE >NAME.bin, and --set "
       "data_dtype=uint32"},
      {20240801, 7, 9, 1000, "though the file has room for 0"},
      {20240522, 1, 10042, 2024, "evaluation file of llm.c"},
      {20240326, 3, 1024, 2024, "model of llm.c"},
      {20240326, 5, 1024, 2024, "model of llm.c"},
  };
  static byte file[2024];
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    put32(file, cases[i].magic);
    put32(file + 4, cases[i].version);
    put32(file + 8, cases[i].tokens);
    for (size_t at = 1024; at < sizeof file; at += 2)
      file[at] = (byte)at, file[at + 1] = (byte)(at >> 9);
    is(file, cases[i].size, BK_WANTED_UINT16, cases[i].part);
    is(file, cases[i].size, BK_WANTED_UINT32, cases[i].part);
  }
  put32(file + 4, 20240520); /* a stream of uint32 that begins with that number */
  is_fine(file, 2024, BK_WANTED_UINT32, "a stream");
}
END_TEST

/* ---- UTF-16, UTF-32 ---- */

/* Code points below 0x10000 in units of 2 or 4 bytes, with or without a mark; returns the bytes. */
static size_t wide(const unsigned *text, size_t count, size_t repeats, int unit, bool big,
                   bool mark, byte *out) {
  size_t at = 0;
  for (size_t i = mark ? 0 : 1; i < count * repeats + 1; i++) {
    unsigned c = i == 0 ? 0xfeff : text[(i - 1) % count];
    for (int b = 0; b < unit; b++) out[at++] = (byte)(c >> 8 * (big ? unit - 1 - b : b));
  }
  return at;
}

START_TEST(wide_text) {
  static const unsigned english[] = {'T', 'h', 'e', ' ', 'f', 'o', 'x', '.', '\n'};
  static const unsigned russian[] = {0x41c, 0x438, 0x440, ' ',   0x438, ' ',
                                     0x432, 0x43e, 0x439, 0x43d, 0x430, '\n'};
  static const unsigned chinese[] = {0x6211, 0x4eec, 0x7684, 0x76ee, 0x6807, 0x662f, 0x8ba9,
                                     0x6bcf, 0x4e2a, 0x4eba, 0x3002, '\r',   '\n'};
  static const unsigned hindi[] = {0x928, 0x92e, 0x938, 0x94d, 0x924, 0x947, ' ',
                                   0x926, 0x941, 0x928, 0x93f, 0x92f, 0x93e, '\n'};
  static const struct {
    const unsigned *text;
    size_t count;
  } texts[] = {{english, BK_COUNT(english)},
               {russian, BK_COUNT(russian)},
               {chinese, BK_COUNT(chinese)},
               {hindi, BK_COUNT(hindi)}};
  static byte file[8192];
  for (size_t i = 0; i < BK_COUNT(texts); i++)
    for (int big = 0; big < 2; big++) {
      size_t bytes = wide(texts[i].text, texts[i].count, 1, 2, big, true, file);
      is(file, bytes, BK_WANTED_TEXT,
         "text in UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)");
      is_fine(file, bytes, BK_WANTED_UINT16, "tokens, for all that is known");
      bytes = wide(texts[i].text, texts[i].count, 20, 2, big, true, file);
      is(file, bytes, BK_WANTED_UINT16, "text in UTF-16");
      is(file, bytes, BK_WANTED_JSON, "text in UTF-16");
      is(file, wide(texts[i].text, texts[i].count, 3, 4, big, true, file), BK_WANTED_TEXT,
         "text in UTF-32; convert it");
      is(file, wide(texts[i].text, texts[i].count, 20, 2, big, false, file), BK_WANTED_TEXT,
         big ? "iconv -f UTF-16BE" : "iconv -f UTF-16LE");
      is(file, wide(texts[i].text, texts[i].count, 20, 4, big, false, file), BK_WANTED_TEXT,
         "not text");
    }
}
END_TEST

/* ---- what is no text ---- */

static uint32_t random_at(uint64_t i) {
  uint32_t r[4];
  bk_philox(7, 0, i, r);
  return r[0];
}

/* Ids as texts have them: small ones often, large ones now and then. */
static uint32_t id_at(uint64_t i, uint32_t vocab) {
  uint32_t r = random_at(i), within = r % 4 == 0   ? vocab
                                      : r % 4 == 1 ? 3000
                                      : r % 4 == 2 ? 300
                                                   : 40;
  return random_at(i + 1000000) % (within < vocab ? within : vocab);
}

static size_t stream(uint32_t vocab, size_t count, int width, bool big, byte *out) {
  for (size_t i = 0; i < count; i++)
    for (int b = 0; b < width; b++) {
      int place = big ? width - 1 - b : b;
      out[i * (size_t)width + (size_t)b] = place < 4 ? (byte)(id_at(i, vocab) >> 8 * place) : 0;
    }
  return count * (size_t)width;
}

START_TEST(binary) {
  static const uint32_t vocabularies[] = {257, 5000, 50257, 129280};
  static byte file[1 << 16];
  for (size_t i = 0; i < BK_COUNT(vocabularies); i++)
    for (int width = 2; width <= 8; width *= 2) {
      is(file, stream(vocabularies[i], 4000, width, false, file), BK_WANTED_TEXT, "");
      is(file, stream(vocabularies[i], 100, width, false, file), BK_WANTED_TEXT, "");
      is(file, stream(vocabularies[i], 2000, width, true, file), BK_WANTED_TEXT, "");
    }
  ck_assert_ptr_nonnull(
      strstr(words, "control characters; a stream of tokens needs a name that ends in .bin"));
  static const size_t lengths[] = {512, 700, 4096, 65536}; /* random or packed bytes */
  for (size_t i = 0; i < BK_COUNT(lengths); i++) {
    for (size_t at = 0; at < lengths[i]; at++) file[at] = (byte)(random_at(at + i) >> 11);
    is(file, lengths[i], BK_WANTED_TEXT, "not text");
  }
}
END_TEST

/* ---- what is text ---- */

static size_t repeat(const char *text, size_t length, size_t bytes, byte *out) {
  size_t at = 0;
  for (; at + length <= bytes; at += length) memcpy(out + at, text, length);
  return at;
}

START_TEST(texts) {
  static const sample good[] = {
      SAMPLE("The quick brown fox jumps over the lazy dog, 0123456789 times.\n", "ASCII"),
      SAMPLE("\xef\xbb\xbf"
             "begins with a mark of UTF-8\r\nas editors write it\r\n",
             "UTF-8 with a mark"),
      SAMPLE("Les \xc3\xa9l\xc3\xa8ves fran\xc3\xa7"
             "ais, na\xc3\xafve co\xc3\xb6peration, stra\xc3\x9f"
             "e\n",
             "UTF-8, western"),
      SAMPLE("\xd0\x9c\xd0\xb8\xd1\x80 \xd0\xb8 \xd0\xb2\xd0\xbe\xd0\xb9\xd0\xbd\xd0\xb0\n",
             "UTF-8, Russian"),
      SAMPLE("\xe6\x88\x91\xe4\xbb\xac\xe7\x9a\x84\xe7\x9b\xae\xe6\xa0\x87\xe3\x80\x82\n",
             "UTF-8, Chinese"),
      SAMPLE("\xe3\x81\x93\xe3\x82\x8c\xe3\x81\xaf\xe3\x83\x86\xe3\x82\xb9\xe3\x83\x88\n",
             "UTF-8, Japanese"),
      SAMPLE(
          "\xe0\xb8\xaa\xe0\xb8\xa7\xe0\xb8\xb1\xe0\xb8\xaa \xe0\xa4\xa8\xe0\xa4\xae\xe0\xa4\xb8 "
          "\xd8\xb3\xd9\x84\xd8\xa7\xd9\x85 \xd7\xa9\xd7\x9c\n",
          "UTF-8, Thai to Hebrew"),
      SAMPLE("\xf0\x9f\x98\x80\xf0\x9f\x8e\x89 \xf0\x9d\x94\x98\n", "UTF-8, beyond 16 bits"),
      SAMPLE("Les \xe9l\xe8ves fran\xe7"
             "ais, stra\xdf"
             "e, 5 \xb5m\n",
             "Latin-1"),
      SAMPLE("\xcd\xe0\xf8\xe0 \xf6\xe5\xeb\xfc, \xe1\xf3\xea\xe2\xfb\r\n", "windows-1251"),
      SAMPLE("\xce\xc1\xdb\xc1 \xc3\xc5\xcc\xd8\n", "KOI8-R"),
      SAMPLE("\x82\xb1\x82\xea\x82\xcd\x83\x65\x83\x58\x83\x67\x81\x42\n", "Shift-JIS"),
      SAMPLE("\xce\xd2\xc3\xc7\xb5\xc4\xc4\xbf\xb1\xea\xa1\xa3\n", "GBK"),
      SAMPLE("\xa7\xda\xad\xcc\xaa\xba\xa5\xd8\xbc\xd0\xa1\x43\n", "Big5"),
      SAMPLE("\x1b$B$3$l$O%F%9%H\x1b(B ok\n", "ISO-2022-JP"),
      SAMPLE("\xc9\xcd\xcd\xcd\xbb \xba text \xba \xc8\xcd\xcd\xcd\xbc \xb0\xb1\xb2\xdb\r\n",
             "frames of CP437"),
      SAMPLE("\x1b[1;31merror\x1b[0m: \x1b]0;title\a done \x1b[K\r\n", "escapes of terminals"),
      SAMPLE("\x1b[32mfile\x1b[m\x0f  \x1b[34mdir\x1b[m\x0f\n", "escapes with a shift-in"),
      SAMPLE("N\bNA\bAM\bME\bE  a_\bb_\bc page\n", "a printed manual"),
      SAMPLE("chapter one\fchapter two\vend\n", "form feeds"),
      SAMPLE("Nov 29 12:00:01 host kernel: something happened\0 and went on, as it does in a log, "
             "for a while\n",
             "a log with a NUL"),
      SAMPLE("a/short/name.txt\0another/longer/name.txt\0third\0", "names that end in NUL"),
      SAMPLE("8=FIX.4.2\1"
             "9=178\1"
             "35=8\1"
             "49=PHLX\1"
             "56=PERS\1"
             "52=20071123-05:30:00.000\1",
             "fields between \\1"),
      SAMPLE("00714cam a2200205 a 4500\x1e\x1f"
             "aA title\x1f"
             "bof a book\x1e\x1f"
             "cits author\x1d",
             "records of a library"),
      SAMPLE("{\"text\": \"a line of JSON\", \"id\": 17, \"tags\": [\"x\", \"y\"]}\n",
             "lines of JSON"),
      SAMPLE("\x1e{\"a\": 1}\n", "a sequence of JSON texts"),
      SAMPLE("int main(void) {\n\treturn 0; /* \\0 */\n}\n\x0c\n", "source"),
      SAMPLE("a,b,c\r\n1,2,3\r\n\x1a", "an end mark of CP/M"),
      SAMPLE("<!DOCTYPE html><p>&nbsp;</p>\n", "HTML"),
      SAMPLE("1\t2\t3\n", "numbers"),
      SAMPLE("MZ is how some programs begin, but this is a text\n", "MZ"),
      SAMPLE("\x7f\x7f of rubbed out characters\n", "DEL"),
  };
  static byte file[8192];
  for (size_t i = 0; i < BK_COUNT(good); i++) {
    is_fine(good[i].bytes, good[i].count, BK_WANTED_TEXT, good[i].part);
    is_fine(file, repeat(good[i].bytes, good[i].count, sizeof file, file), BK_WANTED_TEXT,
            good[i].part);
    is_fine(file, repeat(good[i].bytes, good[i].count, 601, file), BK_WANTED_TEXT, good[i].part);
  }
  /* 256 bytes of every value are bytes that somebody wants */
  for (int i = 0; i < 256; i++) file[i] = (byte)(255 - i);
  is_fine(file, 256, BK_WANTED_TEXT, "every byte once");
}
END_TEST

/* Cut anywhere, UTF-8 stays UTF-8. */
START_TEST(sample_of_text) {
  static byte file[4096];
  size_t bytes = repeat(
      "\xe6\x88\x91\xf0\x9f\x98\x80\xd0\x9c"
      "abcdefghij",
      19, sizeof file, file);
  for (size_t n = 200; n < 230; n++) {
    ck_assert(!seen(file, n, bytes, BK_WANTED_TEXT));
    ck_assert(seen(file, n, bytes, BK_WANTED_UINT16)); /* named .bin it is a text still */
  }
}
END_TEST

/* ---- streams ---- */

START_TEST(text_named_bin) {
  static const sample named[] = {
      SAMPLE("In the beginning was the word, and it was not a stream of tokens. ", "English"),
      SAMPLE("\xd0\x9c\xd0\xb8\xd1\x80 \xd0\xb2\xd0\xbe\xd0\xb9\xd0\xbd\xd0\xb0 \xd1\x8f\n",
             "Russian"),
      SAMPLE("{\"text\": \"a line of JSON\", \"id\": 17}\n", "JSON"),
      SAMPLE("Les \xe9l\xe8ves fran\xe7"
             "ais, stra\xdf"
             "e, 5 \xb5m\r\n",
             "Latin-1"),
  };
  static byte file[2048];
  for (size_t i = 0; i < BK_COUNT(named); i++) {
    is(file, repeat(named[i].bytes, named[i].count, 2048, file), BK_WANTED_UINT16,
       "text; under a name that does not end in .bin its bytes are the tokens");
    is(file, repeat(named[i].bytes, named[i].count, 2048, file), BK_WANTED_UINT32, "text");
    is_fine(named[i].bytes, named[i].count < 100 ? named[i].count : 100, BK_WANTED_UINT16,
            "a few bytes may be anything");
  }
}
END_TEST

START_TEST(streams_that_are_right) {
  static const uint32_t vocabularies[] = {2, 16, 257, 5000, 50257, 65536};
  static byte file[1 << 16];
  for (size_t i = 0; i < BK_COUNT(vocabularies); i++) {
    is_fine(file, stream(vocabularies[i], 4000, 2, false, file), BK_WANTED_UINT16, "uint16");
    is_fine(file, stream(vocabularies[i], 64, 2, false, file), BK_WANTED_UINT16, "uint16");
    is_fine(file, stream(vocabularies[i], 4000, 4, false, file), BK_WANTED_UINT32, "uint32");
  }
  is_fine(file, stream(129280, 4000, 4, false, file), BK_WANTED_UINT32, "uint32");
  is_fine(file, stream(129280, 64, 4, false, file), BK_WANTED_UINT32, "uint32");
  memset(file, 0, 4096);
  is_fine(file, 4096, BK_WANTED_UINT16, "zeros");
  is_fine(file, 4096, BK_WANTED_UINT32, "zeros");
  file[0] = 9;
  is_fine(file, 4096, BK_WANTED_UINT16, "nearly zeros");
  for (size_t i = 0; i < 2048; i++)
    file[2 * i] = (byte)(i / 4), file[2 * i + 1] = i % 2 ? 0 : (byte)(i / 1024);
  is_fine(file, 4096, BK_WANTED_UINT16, "every token twice");
  for (size_t i = 0; i < 500; i++) memcpy(file + 2 * i, "\x41\x42", 2);
  is_fine(file, 1000, BK_WANTED_UINT16, "one token");
  /* symbol, mark, symbol, mark */
  for (size_t i = 0; i < 2000; i++)
    file[2 * i] = (byte)(random_at(i) % 200), file[2 * i + 1] = (byte)(i % 2 ? 0 : 1);
  for (size_t i = 1; i < 2000; i += 2) file[2 * i] = (byte)(random_at(i) % 40);
  is_fine(file, 4000, BK_WANTED_UINT16, "pairs");
}
END_TEST

START_TEST(streams_of_another_width) {
  static byte file[1 << 16];
  static const size_t counts[] = {64, 100, 1001, 7000};
  for (size_t i = 0; i < BK_COUNT(counts); i++) {
    static const uint32_t vocabularies[] = {257, 50257, 65536, 70000, 129280, 199000};
    for (size_t j = 0; j < BK_COUNT(vocabularies); j++) {
      uint32_t vocab = vocabularies[j];
      is(file, stream(vocab, counts[i], 4, false, file), BK_WANTED_UINT16,
         "uint32 tokens, not of uint16");
      ck_assert_ptr_nonnull(strstr(words, "set data_dtype=uint32 (--set data_dtype=uint32)"));
      is(file, stream(vocab, counts[i], 8, false, file), BK_WANTED_UINT16,
         "a stream of 64-bit integers, not of uint16");
      ck_assert_ptr_nonnull(strstr(words, "numpy.fromfile(FILE, \"<i8\").astype(\"<u2\")"));
      is(file, stream(vocab, counts[i], 8, false, file), BK_WANTED_UINT32,
         "a stream of 64-bit integers, not of uint32");
      ck_assert_ptr_nonnull(strstr(words, "\"<i8\").astype(\"<u4\")"));
      is(file, stream(vocab, counts[i], 8, true, file), BK_WANTED_UINT32,
         "big-endian 64-bit integers");
      if (vocab > 65536) continue;
      is(file, stream(vocab, counts[i], 8, true, file), BK_WANTED_UINT16,
         "big-endian 64-bit integers");
      is(file, stream(vocab, counts[i], 4, true, file), BK_WANTED_UINT16,
         "a stream of big-endian uint32, not of uint16");
    }
  }
  /* as no text has them */
  for (size_t i = 0; i < 5000; i++) put32(file + 4 * i, random_at(i) % 150000);
  is(file, 20000, BK_WANTED_UINT16, "data_dtype=uint32");
  is_fine(file, stream(257, 15, 4, false, file), BK_WANTED_UINT16, "too few to tell");
}
END_TEST

static void width_is(const void *bytes, size_t count, int width, int64_t vocab, const char *part) {
  ck_assert(bk_recognise_width(bytes, count, width, vocab, words, sizeof words) == (part != NULL));
  if (part) ck_assert_msg(strstr(words, part) != NULL, "expected \"%s\" in: %s", part, words);
}

START_TEST(other_widths) {
  static byte file[4096];
  width_is(file, stream(50257, 100, 2, false, file), 4, 129280,
           "read as uint16 every token is: set data_dtype=uint16 (--set data_dtype=uint16)");
  width_is(file, stream(50257, 30, 4, false, file), 2, 50000, NULL);
  width_is("\0\0\1\0\x60\xea\0\0", 8, 2, 65537, NULL); /* as good at 16 as at 32 */
  width_is(file, stream(50257, 100, 4, false, file), 4, 129280, NULL);
  put32(file + 40, 129281); /* one wrong token */
  width_is(file, 400, 4, 129280, NULL);
  width_is(file, stream(129280, 100, 4, false, file), 2, 60000, NULL);
  width_is(file, stream(257, 100, 2, true, file), 2, 257,
           "read as big-endian uint16 every token is: convert the file");
  width_is(file, stream(257, 100, 4, true, file), 4, 257, "read as big-endian uint32");
  width_is(file, stream(129280, 100, 8, true, file), 4, 129280,
           "read as big-endian 64-bit integers");
  width_is("\1\0\2\0\3\0\xff\xff", 8, 2, 300, NULL);
  width_is("\1\0\2\0\3\0", 6, 4, 300, "read as uint16");
  width_is("", 0, 2, 300, NULL);
}
END_TEST

/* ---- other files ---- */

START_TEST(tensors_and_json) {
  static const char page[] =
      "<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body><h1>Not "
      "Found</h1><p>The file was not found on this server.</p></body></html>\n";
  is(page, sizeof page - 1, BK_WANTED_TENSORS, "text");
  is_fine(page, sizeof page - 1, BK_WANTED_JSON,
          "text that is no JSON: its line and column are told");
  is("PK\3\4\0\0\0\x08\x08\0aaaabbbbccccdddd\x10\0\0\0archive/data.pkl", 46, BK_WANTED_TENSORS,
     "a PyTorch file (torch.save); convert it to safetensors");
  is("GGUF\3\0\0\0", 8, BK_WANTED_TENSORS, "a GGUF file (llama.cpp); convert it to safetensors");
  is("GGUF\3\0\0\0", 8, BK_WANTED_TEXT, "a GGUF file (llama.cpp); it holds a model's weights");
}
END_TEST

/* Numbers that are whole and no ids as they lie there. */
START_TEST(other_numbers) {
  static unsigned char file[16384];
  static const bk_wanted streams[] = {BK_WANTED_UINT16, BK_WANTED_UINT16_SAID, BK_WANTED_UINT32};
  for (size_t w = 0; w < BK_COUNT(streams); w++) {
    for (size_t i = 0; i < 1024; i++) {
      float f = (float)(i * 7919 % 50257);
      memcpy(file + 4 * i, &f, 4);
    }
    is(file, 4096, streams[w], "a stream of float32; its numbers are whole");
    for (size_t i = 0; i < 1024; i++) {
      double d = (double)(i * 7919 % 50257);
      memcpy(file + 8 * i, &d, 8);
    }
    is(file, 8192, streams[w], "a stream of float64; its numbers are whole");
    for (size_t i = 0; i < 1024; i++) {
      int64_t l = i % 7 == 3 ? -100 : (int64_t)(i * 7919 % 50257);
      memcpy(file + 8 * i, &l, 8);
    }
    is(file, 8192, streams[w], "64-bit integers, some of them negative");
    for (size_t i = 0; i < 1024; i++) {
      int32_t l = i % 7 == 3 ? -100 : (int32_t)(i * 7919 % 50257);
      memcpy(file + 4 * i, &l, 4);
    }
    if (streams[w] != BK_WANTED_UINT32)
      is(file, 4096, streams[w], "32-bit integers, some of them negative");
  }
}
END_TEST

/* A note and its small type, say: uint16 where the user says so, and what looks like large ids
 * where nobody does. */
START_TEST(pairs_that_are_meant) {
  static unsigned char file[16384];
  for (size_t i = 0; i < 4096; i++) {
    uint16_t x = i % 2 ? (uint16_t)(i / 2 % 4) : (uint16_t)(300 + i * 31 % 30000);
    memcpy(file + 2 * i, &x, 2);
  }
  is(file, 8192, BK_WANTED_UINT16, "data_dtype=uint32");
  is_fine(file, 8192, BK_WANTED_UINT16_SAID, "pairs, as was said");
  for (size_t i = 1; i < 4096; i += 2) memset(file + 2 * i, 0, 2);
  is(file, 8192, BK_WANTED_UINT16_SAID, "every second number would be 0");
}
END_TEST

UNIT_MAIN("recognise", unit_open, unit_close, kinds, not_kinds, tar, llmc, wide_text, binary, texts,
          sample_of_text, text_named_bin, streams_that_are_right, streams_of_another_width,
          other_widths, tensors_and_json, other_numbers, pairs_that_are_meant)
