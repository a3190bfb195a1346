/* safetensors: round trips, and hostile files one by one. Every refusal says once what is wrong
 * and names the tensor. */
#include "tests/unit/unit.h"

#include <math.h>
#include <sys/stat.h>

#include "io/safetensors.h"

static const float f32_data[6] = {1.5f, -2, 0, 1e-30f, 3e30f, 7};
static const uint16_t bf16_data[3] = {0x3fc0, 0xc000, 0x7f80}; /* 1.5, -2, inf */
static const int64_t i64_data[2] = {-5, 1LL << 40};

static void put_file(const char *path, const void *data, size_t bytes) {
  ck_assert_int_eq(bk_file_write_atomic(ctx, path, data, bytes), BK_OK);
}

/* Length, header text, `data_bytes` bytes of data. */
static void put_header(const char *path, const char *header, size_t header_bytes,
                       size_t data_bytes) {
  static char file[65536];
  ck_assert_uint_le(8 + header_bytes + data_bytes, sizeof file);
  for (int i = 0; i < 8; i++) file[i] = (char)((uint64_t)header_bytes >> 8 * i & 0xff);
  memcpy(file + 8, header, header_bytes);
  memset(file + 8 + header_bytes, 1, data_bytes);
  put_file(path, file, 8 + header_bytes + data_bytes);
}

static void expect_once(const char *part) {
  const char *newline = strchr(unit_messages, '\n');
  ck_assert_msg(newline && newline[1] == '\0', "exactly one message was expected:\n%s",
                unit_messages);
  unit_expect(part);
}

static void refused(const char *header, size_t data_bytes, const char *part) {
  const char *path = unit_path("hostile.safetensors");
  bk_st_reader *reader = NULL;
  put_header(path, header, strlen(header), data_bytes);
  ck_assert_msg(bk_st_open(ctx, path, &reader) == BK_ERR_DATA, "was not refused: %s", header);
  ck_assert_ptr_null(reader);
  ck_assert_msg(strstr(unit_messages, path) != NULL, "no file name in: %s", unit_messages);
  expect_once(part);
}

static void accepted(const char *header, size_t data_bytes, int count) {
  bk_st_reader *reader;
  put_header(unit_path("fine.safetensors"), header, strlen(header), data_bytes);
  ck_assert_int_eq(bk_st_open(ctx, unit_path("fine.safetensors"), &reader), BK_OK);
  ck_assert_int_eq(bk_st_count(reader), count);
  bk_st_close(reader);
}

static void write_sample(const char *path) {
  bk_st_writer *w;
  ck_assert_int_eq(bk_st_create(ctx, path, &w), BK_OK);
  ck_assert_int_eq(bk_st_add_metadata(w, "format", "pt"), BK_OK);
  ck_assert_int_eq(bk_st_add_metadata(w, "note", "a \"quoted\" \\ line\nand \xc3\xa9"), BK_OK);
  ck_assert_int_eq(bk_st_add(w, "z.first", BK_F32, 2, (int64_t[]){2, 3}), BK_OK);
  ck_assert_int_eq(bk_st_add(w, "b", BK_BF16, 1, (int64_t[]){3}), BK_OK);
  ck_assert_int_eq(bk_st_add(w, "a.scalar \"odd\"", BK_U8, 0, NULL), BK_OK);
  ck_assert_int_eq(bk_st_add(w, "empty", BK_F64, 2, (int64_t[]){0, 4}), BK_OK);
  ck_assert_int_eq(bk_st_add(w, "long", BK_I64, 1, (int64_t[]){2}), BK_OK);
  ck_assert_int_eq(bk_st_write(w, f32_data, 7), BK_OK); /* pieces of any size */
  ck_assert_int_eq(bk_st_write(w, (const char *)f32_data + 7, sizeof f32_data - 7), BK_OK);
  ck_assert_int_eq(bk_st_write(w, bf16_data, sizeof bf16_data), BK_OK);
  ck_assert_int_eq(bk_st_write(w, "\x2a", 1), BK_OK);
  ck_assert_int_eq(bk_st_write(w, i64_data, sizeof i64_data), BK_OK);
  ck_assert_int_eq(bk_st_finish(w), BK_OK);
}

START_TEST(round_trip) {
  bk_st_reader *r;
  const char *path = unit_path("sample.safetensors");
  write_sample(path);
  ck_assert_int_eq(bk_st_open(ctx, path, &r), BK_OK);
  ck_assert_int_eq(bk_st_count(r), 5);
  ck_assert_str_eq(bk_st_path(r), path);
  ck_assert_str_eq(bk_st_get(r, 0)->name, "z.first"); /* in order of data, not of names */
  ck_assert_ptr_null(bk_st_get(r, 5));
  ck_assert_ptr_null(bk_st_get(r, -1));
  ck_assert_str_eq(bk_st_metadata(r, "format"), "pt");
  ck_assert_str_eq(bk_st_metadata(r, "note"), "a \"quoted\" \\ line\nand \xc3\xa9");
  ck_assert_ptr_null(bk_st_metadata(r, "none"));
  ck_assert_ptr_null(bk_st_find(r, "nothing"));
  const bk_st_entry *e = bk_st_find(r, "z.first");
  float back[6];
  ck_assert_int_eq(e->dtype, BK_F32);
  ck_assert_str_eq(e->dtype_name, "F32");
  ck_assert_int_eq(e->ndim, 2);
  ck_assert_int_eq(e->shape[0], 2);
  ck_assert_int_eq(e->shape[1], 3);
  ck_assert_int_eq(bk_st_read(r, e, back, sizeof back), BK_OK);
  ck_assert_mem_eq(back, f32_data, sizeof back);
  ck_assert_int_eq(bk_st_find(r, "a.scalar \"odd\"")->ndim, 0);
  ck_assert_int_eq(bk_st_read(r, bk_st_find(r, "empty"), NULL, 0), BK_OK);
  ck_assert_int_eq(bk_st_read(r, e, back, 4), BK_ERR_ARGUMENT);
  expect_once("tensor z.first has 24 bytes, 4 were asked for");
  bk_st_close(r);
  bk_st_close(NULL);
}
END_TEST

START_TEST(as_double) {
  bk_st_reader *r;
  double v[6];
  write_sample(unit_path("sample.safetensors"));
  ck_assert_int_eq(bk_st_open(ctx, unit_path("sample.safetensors"), &r), BK_OK);
  ck_assert_int_eq(bk_st_read_f64(r, bk_st_find(r, "z.first"), 1, 3, v), BK_OK);
  for (int i = 0; i < 3; i++) ck_assert(v[i] == (double)f32_data[i + 1]);
  ck_assert_int_eq(bk_st_read_f64(r, bk_st_find(r, "b"), 0, 3, v), BK_OK);
  ck_assert(v[0] == 1.5 && v[1] == -2 && isinf(v[2]));
  ck_assert_int_eq(bk_st_read_f64(r, bk_st_find(r, "long"), 0, 2, v), BK_OK);
  ck_assert(v[0] == -5 && v[1] == 0x1p40);
  ck_assert_int_eq(bk_st_read_f64(r, bk_st_find(r, "a.scalar \"odd\""), 0, 1, v), BK_OK);
  ck_assert(v[0] == 42);
  ck_assert_int_eq(bk_st_read_f64(r, bk_st_find(r, "b"), 2, 2, v), BK_ERR_ARGUMENT);
  expect_once("tensor b has 3 elements, 2 from 2 were asked for");
  ck_assert_int_eq(bk_st_read_f64(r, bk_st_find(r, "b"), INT64_MAX, 1, v), BK_ERR_ARGUMENT);
  unit_expect("tensor b");
  ck_assert_int_eq(bk_st_read_f64(r, bk_st_find(r, "b"), -1, 1, v), BK_ERR_ARGUMENT);
  unit_expect("tensor b");
  bk_st_close(r);
}
END_TEST

/* More elements than one piece of the conversion loop. */
START_TEST(long_tensor) {
  enum { N = 5000 };
  static int32_t data[N];
  static double back[N];
  bk_st_writer *w;
  bk_st_reader *r;
  for (int i = 0; i < N; i++) data[i] = i * 7 - 100;
  ck_assert_int_eq(bk_st_create(ctx, unit_path("long.safetensors"), &w), BK_OK);
  ck_assert_int_eq(bk_st_add(w, "t", BK_I32, 1, (int64_t[]){N}), BK_OK);
  ck_assert_int_eq(bk_st_write(w, data, sizeof data), BK_OK);
  ck_assert_int_eq(bk_st_finish(w), BK_OK);
  ck_assert_int_eq(bk_st_open(ctx, unit_path("long.safetensors"), &r), BK_OK);
  ck_assert_int_eq(bk_st_read_f64(r, bk_st_find(r, "t"), 3, N - 3, back), BK_OK);
  for (int i = 3; i < N; i++) ck_assert(back[i - 3] == (double)data[i]);
  bk_st_close(r);
}
END_TEST

/* The layout itself: length, padding, offsets. */
START_TEST(written_bytes) {
  char *data;
  size_t bytes;
  bk_st_writer *w;
  const char wanted[] =
      "{\"__metadata__\":{\"format\":\"pt\"},\"t\":{\"dtype\":\"U8\",\"shape\":[3],\"data_"
      "offsets\":[0,3]}}";
  ck_assert_int_eq(bk_st_create(ctx, unit_path("t.safetensors"), &w), BK_OK);
  ck_assert_int_eq(bk_st_add_metadata(w, "format", "pt"), BK_OK);
  ck_assert_int_eq(bk_st_add(w, "t", BK_U8, 1, (int64_t[]){3}), BK_OK);
  ck_assert_int_eq(bk_st_write(w, "xyz", 3), BK_OK);
  ck_assert_int_eq(bk_st_finish(w), BK_OK);
  ck_assert_int_eq(bk_file_read_all(ctx, unit_path("t.safetensors"), 4096, &data, &bytes), BK_OK);
  size_t header = BK_ALIGN_UP(strlen(wanted), 8);
  ck_assert_uint_eq(bytes, 8 + header + 3);
  ck_assert_uint_eq((unsigned char)data[0], header);
  ck_assert_mem_eq(data + 8, wanted, strlen(wanted));
  for (size_t i = 8 + strlen(wanted); i < 8 + header; i++) ck_assert_int_eq(data[i], ' ');
  ck_assert_mem_eq(data + 8 + header, "xyz", 3);
  bk_free(ctx, data);
}
END_TEST

START_TEST(writer_misuse) {
  bk_st_writer *w;
  ck_assert_int_eq(bk_st_create(ctx, unit_path("no/such/folder.safetensors"), &w), BK_ERR_IO);
  expect_once("no/such/folder.safetensors");
  ck_assert_int_eq(bk_st_create(ctx, unit_path("w.safetensors"), &w), BK_OK);
  ck_assert_int_eq(bk_st_add(w, "none", BK_NONE, 0, NULL), BK_ERR_ARGUMENT);
  expect_once("none");
  ck_assert_int_eq(bk_st_add(w, "huge", BK_F32, 2, (int64_t[]){1LL << 40, 1LL << 40}),
                   BK_ERR_ARGUMENT);
  expect_once("huge");
  ck_assert_int_eq(bk_st_add(w, "negative", BK_F32, 1, (int64_t[]){-1}), BK_ERR_ARGUMENT);
  expect_once("negative");
  ck_assert_int_eq(bk_st_add(w, "__metadata__", BK_F32, 1, (int64_t[]){1}), BK_ERR_ARGUMENT);
  expect_once("__metadata__");
  ck_assert_int_eq(bk_st_add(w, "t", BK_U8, 1, (int64_t[]){2}), BK_OK);
  ck_assert_int_eq(bk_st_finish(w), BK_ERR_ARGUMENT);
  expect_once("0 of 2 declared bytes");
  ck_assert_int_eq(bk_st_write(w, "abc", 3), BK_ERR_ARGUMENT);
  expect_once("more data than the 2 bytes");
  ck_assert_int_eq(bk_st_add(w, "late", BK_U8, 1, (int64_t[]){2}), BK_ERR_ARGUMENT);
  expect_once("late");
  bk_st_abandon(w);
  ck_assert(!bk_path_exists(ctx, unit_path("w.safetensors")));
  ck_assert_int_eq(bk_st_create(ctx, unit_path("w.safetensors"), &w), BK_OK);
  ck_assert_int_eq(bk_st_add(w, "twice", BK_U8, 1, (int64_t[]){1}), BK_OK);
  ck_assert_int_eq(bk_st_add(w, "twice", BK_U8, 1, (int64_t[]){1}), BK_OK);
  ck_assert_int_eq(bk_st_write(w, "ab", 2), BK_ERR_ARGUMENT);
  expect_once("twice");
  bk_st_abandon(w);
  bk_st_abandon(NULL);
}
END_TEST

/* A file cut anywhere is refused, and never read past its end. */
START_TEST(truncated) {
  char *data;
  size_t bytes;
  const char *part = unit_path("part.safetensors");
  write_sample(unit_path("sample.safetensors"));
  ck_assert_int_eq(bk_file_read_all(ctx, unit_path("sample.safetensors"), 65536, &data, &bytes),
                   BK_OK);
  for (size_t cut = 0; cut < bytes; cut++) {
    bk_st_reader *reader = NULL;
    put_file(part, data, cut);
    ck_assert_msg(bk_st_open(ctx, part, &reader) == BK_ERR_DATA, "%zu of %zu bytes were accepted",
                  cut, bytes);
    ck_assert_ptr_null(reader);
    expect_once(part);
  }
  put_file(part, data, bytes - 1);
  bk_st_reader *reader;
  ck_assert_int_eq(bk_st_open(ctx, part, &reader), BK_ERR_DATA);
  expect_once("tensor long: data_offsets");
  bk_free(ctx, data);
}
END_TEST

START_TEST(header_length) {
  bk_st_reader *reader;
  const char *path = unit_path("length.safetensors");
  put_file(path, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
  ck_assert_int_eq(bk_st_open(ctx, path, &reader), BK_ERR_DATA);
  expect_once("a header of 18446744073709551615 bytes, at most 100000000");
  put_file(path, "\x03\0\0\0\0\0\0\0{}", 10);
  ck_assert_int_eq(bk_st_open(ctx, path, &reader), BK_ERR_DATA);
  expect_once("the header has 3 bytes, the file only 2");
  put_file(path, "\0\0\0\0\0\0\0\0", 8);
  ck_assert_int_eq(bk_st_open(ctx, path, &reader), BK_ERR_DATA);
  expect_once("does not begin with '{'");
  ck_assert_int_eq(bk_st_open(ctx, unit_path("absent.safetensors"), &reader), BK_ERR_IO);
  expect_once("absent.safetensors");
  ck_assert_int_eq(bk_st_open(ctx, unit_folder, &reader), BK_ERR_IO);
  expect_once(unit_folder);
  /* opening it would wait for ever */
  ck_assert_int_eq(mkfifo(unit_path("pipe.safetensors"), 0600), 0);
  ck_assert_int_eq(bk_st_open(ctx, unit_path("pipe.safetensors"), &reader), BK_ERR_DATA);
  expect_once("pipe.safetensors is not a regular file");
}
END_TEST

/* What lies there in place of a safetensors file, by its name alone. */
START_TEST(other_kinds) {
  static const struct {
    const char *bytes;
    size_t count;
    const char *part;
  } cases[] = {
      {"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n", 67,
       "not a safetensors file: it is a pointer of Git LFS in place of the file itself; fetch it: "
       "git lfs pull"},
      {"PK\3\4\0\0\x08\x08\0\0aaaabbbbccccdddd\x10\0\0\0archive/data.pkl", 46,
       "not a safetensors file: it is a PyTorch file (torch.save); convert it"},
      {"GGUF\3\0\0\0\1\0\0\0\0\0\0\0", 16,
       "not a safetensors file: it is a GGUF file (llama.cpp); convert it"},
      /* 559 kB of header, by its first bytes */
      {"\x1f\x8b\x08\0\0\0\0\0", 8,
       "not a safetensors file: it is a gzip archive; unpack it first (gunzip)"},
      {"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80", 16,
       "a PyTorch file of the old form"},
  };
  for (size_t i = 0; i < BK_COUNT(cases); i++) {
    bk_st_reader *reader = NULL;
    put_file(unit_path("other.safetensors"), cases[i].bytes, cases[i].count);
    ck_assert_int_eq(bk_st_open(ctx, unit_path("other.safetensors"), &reader), BK_ERR_DATA);
    ck_assert_ptr_null(reader);
    expect_once(cases[i].part);
  }
}
END_TEST

#define T(body) "{\"w.x\":{" body "}}"

START_TEST(bad_json) {
  refused("[]", 0, "does not begin with '{'");
  refused(" {}", 0, "does not begin with '{'");
  refused("{", 0, "'\"' is missing");
  refused("{} x", 0, "something follows");
  refused("{\"w.x\"}", 0, "tensor w.x: ':' is missing");
  refused("{\"w.x\":1}", 0, "tensor w.x: '{' is missing");
  refused("{\"w.x\":{}}", 0, "tensor w.x: dtype, shape and data_offsets are missing");
  refused("{\"w.x", 0, "a string does not end");
  refused("{\"w.x\\", 0, "a string does not end");
  refused("{\"w\\q\":1}", 0, "unknown escape");
  refused("{\"w\\u00g0\":1}", 0, "four hexadecimal digits");
  refused("{\"w\\u0000\":1}", 0, "NUL");
  refused("{\"w\\ud800x\":1}", 0, "high surrogate");
  refused("{\"w\\ud800\\u0041\":1}", 0, "high surrogate");
  refused("{\"w\\udc00\":1}", 0, "low surrogate");
  refused("{\"w\\u001b[31m\":1}", 0, "control character");
  refused("{\"w\n\":1}", 0, "control character");
  refused("{\"\xff\":1}", 0, "not UTF-8");
  refused("{\"\xc0\xaf\":1}", 0, "not UTF-8");
  refused("{\"\xed\xa0\x80\":1}", 0, "not UTF-8");
  refused("{\"\xe2\x82", 0, "not UTF-8");
  refused(T("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],"), 1,
          "tensor w.x: '\"' is missing");
  refused("{\"w.x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},}", 1,
          "'\"' is missing");
  put_header(unit_path("nul.safetensors"), "{}\0", 3, 0);
  bk_st_reader *reader;
  ck_assert_int_eq(bk_st_open(ctx, unit_path("nul.safetensors"), &reader), BK_ERR_DATA);
  expect_once("something follows");
}
END_TEST

START_TEST(bad_fields) {
  refused(T("\"dtype\":\"U8\",\"shape\":[1]"), 1, "tensor w.x: data_offsets is missing");
  refused(T("\"dtype\":\"U8\",\"data_offsets\":[0,1]"), 1, "tensor w.x: shape is missing");
  refused(T("\"shape\":[1],\"data_offsets\":[0,1]"), 1, "tensor w.x: dtype is missing");
  refused(T("\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: a field is given twice");
  refused(T("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"more\":1"), 1,
          "tensor w.x: unknown field");
  refused(T("\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]"), 4,
          "tensor w.x: unknown dtype F33");
  refused(T("\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]"), 4, "tensor w.x: '\"' is missing");
  refused(T("\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]"), 1,
          "tensor w.x: '[' is missing");
  refused(T("\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: a size is negative");
  refused(T("\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: a size is not an integer");
  refused(T("\"dtype\":\"U8\",\"shape\":[1e0],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: a size is not an integer");
  refused(T("\"dtype\":\"U8\",\"shape\":[01],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: an integer begins with 0");
  refused(T("\"dtype\":\"U8\",\"shape\":[\"1\"],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: an integer is missing");
  refused(T("\"dtype\":\"U8\",\"shape\":[1,],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: an integer is missing");
  refused(T("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]"), 1,
          "tensor w.x: ',' is missing");
  refused(T("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]"), 1,
          "tensor w.x: ']' is missing");
  refused(T("\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: more than 8 dimensions");
  refused("{\"__metadata__\":{\"a\":1}}", 0, "__metadata__");
  refused("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "__metadata__ has the key a twice");
  refused("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ is given twice");
}
END_TEST

START_TEST(bad_sizes) {
  refused(T("\"dtype\":\"U8\",\"shape\":[9223372036854775808],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: a size is above 2^63 - 1");
  refused(T("\"dtype\":\"U8\",\"shape\":[99999999999999999999999],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: a size is above");
  refused(T("\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: the product of its shape overflows");
  refused(T("\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: the product of its shape overflows");
  refused(T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]"), 4,
          "tensor w.x: data_offsets [0, 4] hold 4 bytes, dtype F32 and shape need 8");
  refused(T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]"), 8,
          "tensor w.x: data_offsets [8, 0] run backwards");
  refused(T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]"), 7,
          "tensor w.x: data_offsets [0, 8] end past the file's 7 bytes");
  refused(T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[9223372036854775799,"
            "9223372036854775807]"),
          8, "tensor w.x: data_offsets");
  refused(T("\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]"), 1,
          "tensor w.x: its F4 elements do not fill whole bytes");
  refused(T("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]"), 2,
          "1 bytes after the last tensor (w.x)");
  refused(T("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]"), 2,
          "tensor w.x: 1 bytes before its data");
  refused("{}", 1, "1 bytes after the last tensor");
}
END_TEST

#define U8(name, shape, begin, end) \
  "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" shape "],\"data_offsets\":[" begin "," end "]}"

START_TEST(bad_layout) {
  refused("{" U8("a", "2", "0", "2") "," U8("b", "2", "1", "3") "}", 3,
          "tensor b: its data overlaps that of tensor a");
  refused("{" U8("a", "2", "0", "2") "," U8("b", "2", "0", "2") "}", 2,
          "tensor b: its data overlaps that of tensor a");
  refused("{" U8("a", "2", "0", "2") "," U8("b", "2", "3", "5") "}", 5,
          "tensor b: 1 bytes before its data");
  refused("{" U8("a", "3", "0", "3") "," U8("e", "0", "1", "1") "}", 3,
          "tensor e: its data overlaps that of tensor a");
  refused("{" U8("dup", "2", "0", "2") "," U8("c", "1", "2", "3") "," U8("dup", "1", "3", "4") "}",
          4, "tensor dup: the name is there twice");
  refused("{" U8("dup", "2", "0", "2") "," U8("d\\u0075p", "1", "2", "3") "}", 3,
          "tensor dup: the name is there twice");
}
END_TEST

START_TEST(lenient_where_the_format_is) {
  accepted("{}", 0, 0);
  accepted("{ }   \n", 0, 0);
  accepted("{\"__metadata__\":{}}", 0, 0);
  accepted(
      "{ \"a\" : { \"data_offsets\" : [ 1 , 3 ] , \"shape\" : [ 2 ] , \"dtype\" : \"U8\" } ," U8(
          "b", "1", "0", "1") "}",
      3, 2);
  accepted("{" U8("e", "0,7", "0", "0") "," U8("a", "1", "0", "1") "}", 1, 2);
  accepted("{" U8("\\ud83d\\ude00", "", "0", "1") "}", 1, 1);
  accepted(T("\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[0,1]"), 1, 1);
}
END_TEST

START_TEST(listed_but_not_loadable) {
  bk_st_reader *r;
  double v;
  const char header[] = T("\"dtype\":\"I16\",\"shape\":[1],\"data_offsets\":[0,2]");
  put_header(unit_path("i16.safetensors"), header, sizeof header - 1, 2);
  ck_assert_int_eq(bk_st_open(ctx, unit_path("i16.safetensors"), &r), BK_OK);
  ck_assert_int_eq(bk_st_get(r, 0)->dtype, BK_NONE);
  ck_assert_str_eq(bk_st_get(r, 0)->dtype_name, "I16");
  ck_assert(bk_st_element_size(bk_st_get(r, 0)) == 0 && !bk_st_is_float(bk_st_get(r, 0)));
  ck_assert_int_eq(bk_st_read_f64(r, bk_st_get(r, 0), 0, 1, &v), BK_ERR_DATA);
  expect_once("tensor w.x: dtype I16 cannot be loaded");
  bk_st_close(r);
}
END_TEST

/* Length, header and data. */
static void put_whole(const char *path, const char *header, const void *data, size_t data_bytes) {
  char file[4096] = {0};
  size_t length = strlen(header);
  ck_assert_uint_le(8 + length + data_bytes, sizeof file);
  file[0] = (char)(length & 255), file[1] = (char)(length >> 8);
  memcpy(file + 8, header, length);
  memcpy(file + 8 + length, data, data_bytes);
  put_file(path, file, 8 + length + data_bytes);
}

/* The value of a half by its definition: (-1)^s m 2^e. */
static double half_value(unsigned h) {
  unsigned e = h >> 10 & 31, m = h & 1023;
  double v = e == 31 ? (m ? NAN : INFINITY) : e == 0 ? ldexp(m, -24) : ldexp(1024 + m, (int)e - 25);
  return h & 0x8000 ? -v : v;
}

START_TEST(half_precision) {
  static const uint16_t data[] = {0x3c00, 0xc000, 0x0001, 0x83ff, 0x0400,
                                  0x7bff, 0x7c00, 0xfc00, 0x7e01, 0x8000};
  double v[10];
  uint16_t raw[2];
  bk_st_reader *r;
  for (unsigned h = 0; h < 65536; h++) {
    double want = half_value(h), got = (double)bk_f16_to_f32((uint16_t)h);
    ck_assert_msg(isnan(want) ? isnan(got) : want == got && !signbit(want) == !signbit(got),
                  "half %04x: %g, expected %g", h, got, want);
  }
  put_whole(unit_path("f16.safetensors"),
            T("\"dtype\":\"F16\",\"shape\":[2,5],\"data_offsets\":[0,20]"), data, sizeof data);
  ck_assert_int_eq(bk_st_open(ctx, unit_path("f16.safetensors"), &r), BK_OK);
  const bk_st_entry *e = bk_st_get(r, 0);
  ck_assert(bk_st_element_size(e) == 2 && bk_st_is_float(e));
  ck_assert_int_eq(bk_st_read_f64(r, e, 0, 10, v), BK_OK);
  for (int i = 0; i < 10; i++) ck_assert(isnan(v[i]) ? i == 8 : v[i] == half_value(data[i]));
  ck_assert_int_eq(bk_st_read_range(r, e, 3, 2, raw), BK_OK);
  ck_assert_mem_eq(raw, data + 3, sizeof raw);
  ck_assert_int_eq(bk_st_read_f64(r, e, 9, 2, v), BK_ERR_ARGUMENT);
  expect_once("tensor w.x has 10 elements, 2 from 9 were asked for");
  bk_st_close(r);
}
END_TEST

START_TEST(null_metadata) {
  accepted("{\"__metadata__\":null}", 0, 0);
  accepted("{\"__metadata__\": null ," U8("a", "1", "0", "1") "}", 1, 1);
  accepted("{" U8("a", "1", "0", "1") ",\"__metadata__\":null}", 1, 1);
  refused("{\"__metadata__\":nul}", 0, "__metadata__");
  refused("{\"__metadata__\":nullx}", 0, "'}' is missing");
  refused("{\"__metadata__\":null,\"__metadata__\":{}}", 0, "__metadata__ is given twice");
  refused("{\"__metadata__\":\"null\"}", 0, "__metadata__");
}
END_TEST

/* ---- shards ---- */

#define INDEX "model.safetensors.index.json"
#define MAP(text) "{\"metadata\": {\"total_size\": 3}, \"weight_map\": {" text "}}"
#define GOOD \
  MAP("\"a\": \"one.safetensors\", \"c\": \"two.safetensors\", \"b\": \"one.safetensors\"")

/* Two shards: a [1] and b [2] of 1s in one, c [3] of 2s in the other. */
static void put_shards(const char *index) {
  static const char *const stale[] = {"model.safetensors", INDEX};
  for (size_t i = 0; i < BK_COUNT(stale); i++) ctx->fs.remove(ctx->fs.user, unit_path(stale[i]));
  put_whole(unit_path("one.safetensors"), "{" U8("a", "1", "0", "1") "," U8("b", "2", "1", "3") "}",
            "\1\1\1", 3);
  put_whole(unit_path("two.safetensors"),
            "{\"__metadata__\":{\"format\":\"pt\"}," U8("c", "3", "0", "3") "}", "\2\2\2", 3);
  put_file(unit_path(INDEX), index, strlen(index));
}

START_TEST(shards) {
  bk_st_reader *r;
  char data[3], *lack;
  put_shards(GOOD);
  ck_assert_int_eq(bk_st_open_folder(ctx, unit_folder, &r), BK_OK);
  ck_assert_int_eq(bk_st_count(r), 3);
  ck_assert_str_eq(bk_st_path(r), unit_path(INDEX));
  ck_assert_str_eq(bk_st_get(r, 0)->name, "a"); /* one shard after the other */
  ck_assert_str_eq(bk_st_get(r, 1)->name, "b");
  ck_assert_str_eq(bk_st_get(r, 2)->name, "c");
  ck_assert_str_eq(bk_st_entry_path(r, bk_st_find(r, "b")), unit_path("one.safetensors"));
  ck_assert_str_eq(bk_st_entry_path(r, bk_st_find(r, "c")), unit_path("two.safetensors"));
  ck_assert_int_eq(bk_st_read(r, bk_st_find(r, "c"), data, 3), BK_OK);
  ck_assert_mem_eq(data, "\2\2\2", 3);
  ck_assert_int_eq(bk_st_read(r, bk_st_find(r, "b"), data, 2), BK_OK);
  ck_assert_mem_eq(data, "\1\1", 2);
  ck_assert_int_eq(bk_st_read(r, bk_st_find(r, "c"), data, 2), BK_ERR_ARGUMENT);
  expect_once("two.safetensors: tensor c has 3 bytes");
  bk_st_close(r);
  ck_assert_int_eq(bk_st_folder_lacks(ctx, unit_folder, &lack), BK_OK);
  ck_assert_ptr_null(lack);
  /* has precedence */
  put_whole(unit_path("model.safetensors"), "{" U8("z", "1", "0", "1") "}", "\7", 1);
  ck_assert_int_eq(bk_st_open_folder(ctx, unit_folder, &r), BK_OK);
  ck_assert_int_eq(bk_st_count(r), 1);
  ck_assert_ptr_nonnull(bk_st_find(r, "z"));
  bk_st_close(r);
}
END_TEST

static void index_refused(const char *index, const char *part) {
  bk_st_reader *r = NULL;
  put_shards(index);
  ck_assert_msg(bk_st_open_folder(ctx, unit_folder, &r) == BK_ERR_DATA, "was not refused: %s",
                index);
  ck_assert_ptr_null(r);
  ck_assert_msg(strstr(unit_messages, unit_folder) != NULL, "no file name in: %s", unit_messages);
  expect_once(part);
}

START_TEST(hostile_index) {
  index_refused("", INDEX);
  index_refused("{", INDEX);
  index_refused("[]", "a JSON object");
  index_refused("{}", "weight_map is missing");
  index_refused("{\"metadata\": {}}", "weight_map is missing");
  index_refused("{\"weight_map\": []}", "weight_map must be an object");
  index_refused("{\"weight_map\": null}", "weight_map must be an object");
  index_refused(MAP(""), "names no tensor");
  index_refused(MAP("\"a\": 1"), "for tensor a, and gives no string");
  index_refused(MAP("\"a\": {\"one.safetensors\": 1}"), "for tensor a, and gives no string");
  index_refused(MAP("\"a\": \"\""), "tensor a: \"\" is not the plain name");
  index_refused(MAP("\"a\": \"..\""), "tensor a: \"..\" is not the plain name");
  index_refused(MAP("\"a\": \".\""), "is not the plain name");
  index_refused(MAP("\"a\": \"../one.safetensors\""),
                "tensor a: \"../one.safetensors\" is not the plain name");
  index_refused(MAP("\"a\": \"/etc/passwd\""), "is not the plain name");
  index_refused(MAP("\"a\": \"sub/one.safetensors\""), "is not the plain name");
  index_refused(MAP("\"a\": \"one\\u001b[31m\""), "control character");
  index_refused(MAP("\"a\\u0007\": \"one.safetensors\""), "control character");
  index_refused(MAP("\"a\": \"one.safetensors\", \"a\": \"two.safetensors\""), "duplicate");
  index_refused(
      MAP("\"a\": \"one.safetensors\", \"b\": \"one.safetensors\", \"c\": \"three.safetensors\""),
      "three.safetensors is missing");
  index_refused(
      MAP("\"a\": \"one.safetensors\", \"b\": \"one.safetensors\", \"d\": \"one.safetensors\""),
      "tensor d is to be in one.safetensors");
  index_refused(MAP("\"a\": \"one.safetensors\""),
                "one.safetensors: tensor b is not in the weight_map");
  index_refused(
      MAP("\"a\": \"one.safetensors\", \"b\": \"two.safetensors\", \"c\": \"two.safetensors\""),
      "one.safetensors: tensor b is here");
  /* the index is no shard */
  index_refused(MAP("\"a\": \"" INDEX "\""), INDEX ": not a safetensors file");
}
END_TEST

START_TEST(index_and_files) {
  bk_st_reader *r = NULL;
  put_shards(
      "{\"weight_map\": {\"a\": \"one.safetensors\", \"b\": \"one.safetensors\"}, \"version\": 2}");
  ck_assert_int_eq(bk_st_open_folder(ctx, unit_folder, &r), BK_OK);
  expect_once("the key \"version\" is not known");
  bk_st_close(r);
  put_shards(GOOD);
  put_whole(unit_path("two.safetensors"), "{" U8("c", "3", "0", "3") "}", "\2\2", 2); /* cut */
  ck_assert_int_eq(bk_st_open_folder(ctx, unit_folder, &r), BK_ERR_DATA);
  expect_once("two.safetensors: tensor c: data_offsets");
  ctx->fs.remove(ctx->fs.user, unit_path("two.safetensors"));
  ck_assert_int_eq(ctx->fs.mkdir(ctx->fs.user, unit_path("two.safetensors")), 0);
  ck_assert_int_eq(bk_st_open_folder(ctx, unit_folder, &r), BK_ERR_IO);
  expect_once("two.safetensors");
  ctx->fs.remove(ctx->fs.user, unit_path("two.safetensors"));
  ctx->fs.remove(ctx->fs.user, unit_path(INDEX));
  ck_assert_int_eq(bk_st_open_folder(ctx, unit_folder, &r), BK_ERR_IO);
  expect_once("model.safetensors");
}
END_TEST

/* Whether a file is as long as it says: every cut of one shows, and nothing is said of what else
 * may be wrong with it. */
START_TEST(lengths) {
  static const char tricky[] =
      "{\"__metadata__\":{\"data_offsets\":\"[0,99]\",\"x\":\"\\\"data_offsets\\\":[0,99]\"}," U8(
          "e", "0", "3", "3") "," U8("a", "3", "0", "3") "}";
  const char *path = unit_path("model.safetensors");
  char *data, *lack;
  size_t bytes;
  put_whole(path, tricky, "\1\1\1", 3);
  ck_assert_int_eq(bk_file_read_all(ctx, path, 4096, &data, &bytes), BK_OK);
  for (size_t cut = 0; cut <= bytes; cut++) {
    put_file(path, data, cut);
    ck_assert_int_eq(bk_st_folder_lacks(ctx, unit_folder, &lack), BK_OK);
    ck_assert_msg((lack == NULL) == (cut == bytes), "%zu of %zu bytes", cut, bytes);
    if (lack) ck_assert_str_eq(lack, "model.safetensors ends before its data does");
    bk_free(ctx, lack);
  }
  bk_free(ctx, data);
  put_file(path, "version https://git-lfs", 23);
  ck_assert_int_eq(bk_st_folder_lacks(ctx, unit_folder, &lack), BK_OK);
  ck_assert_ptr_null(lack);
  put_whole(path, "{\"a\":{\"data_offsets\":[0,99999999999999999999999999]", "", 0);
  ck_assert_int_eq(bk_st_folder_lacks(ctx, unit_folder, &lack), BK_OK);
  ck_assert_ptr_nonnull(lack);
  bk_free(ctx, lack);
  put_shards(GOOD);
  put_file(unit_path("two.safetensors"), "\100\0\0\0\0\0\0\0{", 9);
  ck_assert_int_eq(bk_st_folder_lacks(ctx, unit_folder, &lack), BK_OK);
  ck_assert_str_eq(lack, "two.safetensors ends before its data does");
  bk_free(ctx, lack);
  ctx->fs.remove(ctx->fs.user, unit_path("one.safetensors"));
  ck_assert_int_eq(bk_st_folder_lacks(ctx, unit_folder, &lack), BK_OK);
  ck_assert_str_eq(lack, "one.safetensors is missing");
  bk_free(ctx, lack);
}
END_TEST

/* Every single byte of a good header replaced: an error or a reader, never a crash, and at most
 * one message. */
START_TEST(mutated) {
  static const char good[] =
      "{\"__metadata__\":{\"k\":\"v\"}," U8("a", "2", "0", "2") "," U8("b", "1", "2", "3") "}";
  static const unsigned char bytes[] = {0,   '"', '\\', '{', '}', '[',  ']', ',',
                                        ':', '9', '-',  'e', ' ', 0x80, 0xff};
  const char *path = unit_path("mutated.safetensors");
  char header[sizeof good];
  int refusals = 0;
  for (size_t i = 0; i < sizeof good - 1; i++)
    for (size_t b = 0; b < BK_COUNT(bytes); b++) {
      bk_st_reader *r = NULL;
      memcpy(header, good, sizeof good);
      header[i] = (char)bytes[b];
      put_header(path, header, sizeof good - 1, 3);
      bk_status status = bk_st_open(ctx, path, &r);
      ck_assert(status == BK_OK || status == BK_ERR_DATA);
      if (status == BK_ERR_DATA) expect_once(path), refusals++;
      else unit_expect(NULL);
      bk_st_close(r);
    }
  ck_assert_int_gt(refusals, 500);
}
END_TEST

UNIT_MAIN("safetensors", unit_folder_open, unit_folder_close, round_trip, as_double, long_tensor,
          written_bytes, writer_misuse, truncated, other_kinds, header_length, bad_json, bad_fields,
          bad_sizes, bad_layout, lenient_where_the_format_is, listed_but_not_loadable,
          half_precision, null_metadata, shards, hostile_index, index_and_files, lengths, mutated)
