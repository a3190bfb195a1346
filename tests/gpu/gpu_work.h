/* What the tests of every GPU backend's streams and faults share: a little work, and what is
 * expected of devices that are not here, of memory that is too small and of lost streams. */
#ifndef BK_TESTS_GPU_WORK_H
#define BK_TESTS_GPU_WORK_H

#include "ops/plan.h"
#include "tests/gpu/gpu_device.h"

static BK_UNUSED void set(const char *name, const char *value) {
  ck_assert_int_eq(value ? setenv(name, value, 1) : unsetenv(name), 0);
}

/* ---- a little work: y = x^T (copy), then y = y + x (add), as often as asked ---- */

enum { side = 8, count = side * side };

typedef struct work {
  bk_tensor x, y;
  bk_copy_args copy;
  bk_add_args add;
  bk_plan copying, adding;
} work;

static BK_UNUSED void work_open(work *w) {
  float values[count];
  memset(w, 0, sizeof *w);
  for (int i = 0; i < count; i++) values[i] = (float)(i * i % 31);
  w->x = gpu_tensor(bk_tensor_2d(BK_F32, side, side));
  w->y = gpu_tensor(bk_tensor_2d(BK_F32, side, side));
  w->copy = (bk_copy_args){bk_tensor_transpose(w->x, 0, 1), w->y};
  w->add = (bk_add_args){w->y, w->x, w->y};
  ck_assert_int_eq(bk_plan_prepare(device, BK_OP_COPY, &w->copy, &w->copying), BK_OK);
  ck_assert_int_eq(bk_plan_prepare(device, BK_OP_ADD, &w->add, &w->adding), BK_OK);
  ck_assert_int_eq(bk_tensor_upload(stream, &w->x, values), BK_OK);
}

static BK_UNUSED void work_close(work *w) {
  bk_plan_release(&w->copying);
  bk_plan_release(&w->adding);
  bk_buffer_free(w->x.buffer);
  bk_buffer_free(w->y.buffer);
}

static BK_UNUSED bk_status copy(work *w, bk_stream *on) {
  return bk_plan_launch(on, &w->copying, &w->copy, (bk_place){0});
}
static BK_UNUSED bk_status add(work *w, bk_stream *on) {
  return bk_plan_launch(on, &w->adding, &w->add, (bk_place){0});
}

/* y must be x^T + times x. */
static BK_UNUSED void expect_result(work *w, bk_stream *on, int times) {
  float x[count], y[count];
  ck_assert_int_eq(bk_tensor_download(on, &w->x, x), BK_OK);
  ck_assert_int_eq(bk_tensor_download(on, &w->y, y), BK_OK);
  for (int i = 0; i < count; i++)
    ck_assert_float_eq(y[i], x[i % side * side + i / side] + (float)times * x[i]);
}

/* Every call on a poisoned stream returns `status` and says nothing. */
static BK_UNUSED void expect_poisoned(work *w, bk_stream *on, bk_status status) {
  bool done = false;
  char byte = 0;
  const bk_place at = {w->y.buffer, 0};
  bk_event *const unused = NULL; /* a poisoned stream does not look at it */
  ck_assert_int_eq(copy(w, on), status);
  ck_assert_int_eq(on->ops->event_wait(on, unused), status);
  ck_assert_int_eq(on->ops->event_record(on, unused), status);
  ck_assert_int_eq(on->ops->sync(on), status);
  ck_assert_int_eq(on->ops->query(on, &done), status);
  ck_assert_int_eq(on->ops->upload(on, at, &byte, 1), status);
  ck_assert_int_eq(on->ops->download(on, &byte, at, 1), status);
  ck_assert_int_eq(on->ops->copy(on, at, (bk_place){w->x.buffer, 0}, 1), status);
  ck_assert_int_eq(on->ops->fill(on, at, 0, 1), status);
  unit_expect(NULL); /* it was said once */
}

/* ---- faults ---- */

/* The backend has no device, for the reason `why`, and opening `device_name` gives it too. */
static BK_UNUSED void gpu_expect_refused(const char *name, const char *device_name, const char *why,
                                         char *reason, size_t reason_size) {
  const bk_backend *backend = bk_backend_find(name);
  bk_device *d = NULL;
  ck_assert_ptr_nonnull(backend);
  ck_assert_int_eq(backend->probe(ctx, reason, reason_size), BK_ERR_ABSENT);
  ck_assert_msg(strstr(reason, why) != NULL, "expected \"%s\" in: %s", why, reason);
  unit_expect(NULL); /* a probe says nothing of its own */
  ck_assert_int_eq(bk_device_open(ctx, device_name, NULL, &d), BK_ERR_ABSENT);
  unit_expect(reason);
  ck_assert_int_eq(bk_device_open(ctx, NULL, NULL, &d), BK_OK); /* the default is another */
  ck_assert_str_ne(d->backend->name, name);
  bk_device_close(d);
}

static BK_UNUSED bk_status gpu_commit_weights(int64_t bytes, bk_memory **memory) {
  bk_tensor t;
  ck_assert_int_eq(bk_memory_create(device, memory), BK_OK);
  ck_assert_int_eq(bk_memory_tensor(*memory, BK_MEM_ACTIVATIONS, BK_F32, 1, (int64_t[]){1000}, &t),
                   BK_OK);
  ck_assert_int_eq(bk_memory_tensor(*memory, BK_MEM_WEIGHTS, BK_U8, 1, &bytes, &t), BK_OK);
  return bk_memory_commit(*memory);
}

/* Less memory than was refused goes on in the same process. */
static BK_UNUSED void gpu_expect_little_fits(void) {
  bk_memory *memory = NULL;
  work w;
  ck_assert_int_eq(gpu_commit_weights(300000, &memory), BK_OK);
  work_open(&w);
  ck_assert_int_eq(copy(&w, stream), BK_OK);
  expect_result(&w, stream, 0);
  work_close(&w);
  bk_memory_destroy(memory);
}

#endif
