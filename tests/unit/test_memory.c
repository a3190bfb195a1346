/* The memory planner: places before memory, chunks, stack discipline, commit and its failures. */
#include "tests/unit/fake_device.h"
#include "tests/unit/unit.h"

static bk_device *device;
static bk_stream *stream;
static bk_memory *memory;

static void open_memory(void) {
  unit_open();
  fake_reset();
  fake.max_alloc = 4096;
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
  ck_assert_int_eq(bk_backend_register(ctx, &fake_backend), BK_OK);
  ck_assert_int_eq(bk_device_open(ctx, "fake", NULL, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
  ck_assert_int_eq(bk_memory_create(device, &memory), BK_OK);
}

static void close_memory(void) {
  bk_memory_destroy(memory);
  bk_stream_destroy(stream);
  bk_device_close(device);
  ck_assert_int_eq(fake.buffers, 0);
  unit_close();
}

static bk_tensor reserve(bk_memory_class c, int64_t elements) {
  bk_tensor t = {0};
  ck_assert_int_eq(bk_memory_tensor(memory, c, BK_F32, 1, &elements, &t), BK_OK);
  return t;
}

START_TEST(class_names) {
  static const char *const names[] = {"weights",     "masters",   "gradients", "optimizer",
                                      "activations", "workspace", "comm",      "staging"};
  ck_assert_uint_eq(BK_COUNT(names), BK_MEM_CLASS_COUNT);
  for (int c = 0; c < BK_MEM_CLASS_COUNT; c++)
    ck_assert_str_eq(bk_memory_class_name((bk_memory_class)c), names[c]);
  ck_assert_str_eq(bk_memory_class_name(BK_MEM_CLASS_COUNT), "invalid");
}
END_TEST

/* Tensors planned before memory exists are usable after commit, hold zeros and do not overlap. */
START_TEST(plan_then_commit) {
  enum { N = 40, ELEMENTS = 300 }; /* 1200 bytes: three to a chunk of 4096 */
  bk_tensor tensors[N];
  for (int i = 0; i < N; i++) tensors[i] = reserve(BK_MEM_WEIGHTS, ELEMENTS);
  bk_tensor other = reserve(BK_MEM_GRADIENTS, 5);
  ck_assert_ptr_ne(other.buffer, tensors[0].buffer);
  ck_assert_int_eq(other.buffer->mem_class, BK_MEM_GRADIENTS);
  ck_assert_ptr_null(tensors[0].buffer->handle);
  ck_assert_uint_eq(fake.buffers, 0);
  size_t planned = bk_memory_bytes(memory, BK_MEM_WEIGHTS);
  ck_assert_uint_eq(planned, 13 * (2 * 1280 + 1200) + 1200);
  ck_assert_uint_eq(bk_memory_bytes(memory, BK_MEM_OPTIMIZER), 0);
  ck_assert_int_eq(bk_memory_commit(memory), BK_OK);
  ck_assert_int_eq(fake.buffers, 14 + 1);
  double values[ELEMENTS], got[ELEMENTS];
  for (int i = 0; i < N; i++) {
    ck_assert_uint_eq(tensors[i].offset % BK_ARENA_ALIGN, 0);
    ck_assert_uint_le(tensors[i].buffer->size, 4096);
    ck_assert_int_eq(bk_tensor_read_f64(stream, &tensors[i], got), BK_OK);
    for (int j = 0; j < ELEMENTS; j++) ck_assert_double_eq(got[j], 0);
    for (int j = 0; j < ELEMENTS; j++) values[j] = i + 1;
    ck_assert_int_eq(bk_tensor_write_f64(stream, &tensors[i], values), BK_OK);
  }
  for (int i = 0; i < N; i++) {
    ck_assert_int_eq(bk_tensor_read_f64(stream, &tensors[i], got), BK_OK);
    for (int j = 0; j < ELEMENTS; j++) ck_assert_double_eq(got[j], i + 1);
  }
}
END_TEST

START_TEST(rewinding_shares_space) {
  bk_tensor kept = reserve(BK_MEM_ACTIVATIONS, 10);
  bk_arena_mark mark = bk_memory_mark(memory, BK_MEM_ACTIVATIONS);
  bk_tensor big = reserve(BK_MEM_ACTIVATIONS, 500);
  bk_memory_rewind(memory, BK_MEM_ACTIVATIONS, mark);
  bk_tensor small = reserve(BK_MEM_ACTIVATIONS, 20);
  ck_assert_uint_eq(big.offset, small.offset);
  ck_assert_ptr_eq(big.buffer, small.buffer);
  ck_assert_uint_ne(kept.offset, small.offset);
  ck_assert_uint_eq(bk_memory_bytes(memory, BK_MEM_ACTIVATIONS), 256 + 2000);
  ck_assert_int_eq(bk_memory_commit(memory), BK_OK);
  ck_assert_uint_eq(big.buffer->size, 256 + 2000);
}
END_TEST

/* Across chunks: the later chunk's buffer object is met again. */
START_TEST(rewinding_across_chunks) {
  reserve(BK_MEM_ACTIVATIONS, 600);
  bk_arena_mark mark = bk_memory_mark(memory, BK_MEM_ACTIVATIONS);
  bk_tensor first = reserve(BK_MEM_ACTIVATIONS, 1000);
  bk_memory_rewind(memory, BK_MEM_ACTIVATIONS, mark);
  bk_tensor again = reserve(BK_MEM_ACTIVATIONS, 900);
  ck_assert_ptr_eq(first.buffer, again.buffer);
  ck_assert_uint_eq(again.offset, 0);
  ck_assert_uint_eq(bk_memory_bytes(memory, BK_MEM_ACTIVATIONS), 2400 + 4000);
}
END_TEST

START_TEST(bad_requests) {
  bk_tensor t = {0};
  ck_assert_int_eq(bk_memory_tensor(memory, BK_MEM_WEIGHTS, BK_NONE, 1, (int64_t[]){3}, &t),
                   BK_ERR_ARGUMENT);
  unit_expect("dtype");
  ck_assert_int_eq(
      bk_memory_tensor(memory, BK_MEM_WEIGHTS, BK_F32, 5, (int64_t[]){1, 1, 1, 1, 1}, &t),
      BK_ERR_ARGUMENT);
  unit_expect("dimensions");
  ck_assert_int_eq(bk_memory_tensor(memory, BK_MEM_WEIGHTS, BK_F32, 2, (int64_t[]){3, -1}, &t),
                   BK_ERR_ARGUMENT);
  unit_expect("dimension 1 has size -1");
  int64_t huge[3] = {INT64_MAX, INT64_MAX, 8};
  ck_assert_int_eq(bk_memory_tensor(memory, BK_MEM_WEIGHTS, BK_F32, 3, huge, &t), BK_ERR_ARGUMENT);
  unit_expect("larger than can be addressed");
  ck_assert_int_eq(bk_memory_tensor(memory, BK_MEM_WEIGHTS, BK_F32, 1, (int64_t[]){1025}, &t),
                   BK_ERR_MEMORY);
  unit_expect("weights: 4100 bytes");
  ck_assert(!bk_tensor_present(&t));
  ck_assert_int_eq(
      bk_memory_tensor(memory, BK_MEM_WEIGHTS, BK_F32, 2, (int64_t[]){0, INT64_MAX}, &t), BK_OK);
  ck_assert_uint_eq(bk_memory_bytes(memory, BK_MEM_WEIGHTS), 0);
  ck_assert_int_eq(bk_memory_commit(memory), BK_OK); /* a class of empty tensors only */
}
END_TEST

START_TEST(commit_is_once) {
  bk_tensor t = reserve(BK_MEM_WEIGHTS, 3);
  ck_assert_int_eq(bk_memory_commit(memory), BK_OK);
  ck_assert_int_eq(bk_memory_commit(memory), BK_ERR_ARGUMENT);
  unit_expect("committed already");
  int64_t n = 3;
  ck_assert_int_eq(bk_memory_tensor(memory, BK_MEM_STAGING, BK_F32, 1, &n, &t), BK_ERR_ARGUMENT);
  unit_expect("staging was asked for after commit");
}
END_TEST

/* Whichever allocation fails, nothing stays allocated, and a later commit may succeed. */
START_TEST(commit_undoes) {
  reserve(BK_MEM_WEIGHTS, 1000);
  reserve(BK_MEM_WEIGHTS, 1000);
  reserve(BK_MEM_OPTIMIZER, 700);
  for (int n = 0; n < 3; n++) {
    fake.allocs_left = n;
    ck_assert_int_eq(bk_memory_commit(memory), BK_ERR_MEMORY);
    unit_expect(n < 2 ? "weights needs 8000 bytes, 4000 of them" : "optimizer needs 2800 bytes");
    ck_assert_int_eq(fake.buffers, 0);
  }
  fake.allocs_left = -1;
  ck_assert_int_eq(bk_memory_commit(memory), BK_OK);
  ck_assert_int_eq(fake.buffers, 3);
}
END_TEST

START_TEST(destroy_nothing) { bk_memory_destroy(NULL); }
END_TEST

UNIT_MAIN("memory", open_memory, close_memory, class_names, plan_then_commit,
          rewinding_shares_space, rewinding_across_chunks, bad_requests, commit_is_once,
          commit_undoes, destroy_nothing)
