/* What the unit tests of the opencl and vulkan backends share: a device and a stream, tensors on
 * it, and a little work. Programs are kept in a folder of the tests' own (the driver's cache is
 * where it is). */
#ifndef BK_TESTS_GPU_UNIT_H
#define BK_TESTS_GPU_UNIT_H

#include "tests/unit/unit.h"

#include "runtime/backend.h"

#include <sys/wait.h>
#include <unistd.h>

#define SKIPPED 77

static bk_device *device;
static bk_stream *stream;

static BK_UNUSED void set(const char *name, const char *value) {
  ck_assert_int_eq(value ? setenv(name, value, 1) : unsetenv(name), 0);
}

static BK_UNUSED int gpu_look(const char *name) {
  char reason[1024] = "its module was not built";
  bk_context *probing;
  if (bk_context_create(NULL, &probing) != BK_OK || bk_registry_init(probing) != BK_OK) return 1;
  const bk_backend *backend = bk_backend_find(name);
  bool here = backend && backend->probe(probing, reason, sizeof reason) == BK_OK;
  if (!here) printf("SKIP: no %s device: %s\n", name, reason);
  fflush(stdout);
  bk_context_destroy(probing);
  return here ? 0 : 1;
}

/* Whether a backend has a device here; if not, says why on standard output. Asked in a process
 * of its own: drivers begin threads, which the children that run the tests would not have. */
static BK_UNUSED bool gpu_is_here(const char *name) {
  int status = 1;
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) _exit(gpu_look(name));
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
         WEXITSTATUS(status) == 0;
}

static BK_UNUSED void gpu_registry(void) {
  unit_folder_open();
  set("XDG_CACHE_HOME", unit_folder);
  ck_assert_int_eq(bk_registry_init(ctx), BK_OK);
}

static BK_UNUSED void gpu_open(const char *name) {
  device = NULL;
  stream = NULL;
  gpu_registry();
  ck_assert_int_eq(bk_device_open(ctx, name, NULL, &device), BK_OK);
  ck_assert_int_eq(bk_stream_create(device, 0, &stream), BK_OK);
}

static BK_UNUSED void gpu_close(void) {
  if (stream) bk_stream_destroy(stream);
  if (device) bk_device_close(device);
  stream = NULL;
  device = NULL;
  unit_folder_close();
}

/* ---- what the tests of faults share ---- */

/* The backend has no device, for this reason. */
static BK_UNUSED void gpu_expect_absent(const char *name, const char *why) {
  const bk_backend *backend = bk_backend_find(name);
  char reason[1024] = "";
  bk_device *d = NULL;
  ck_assert_int_eq(backend->probe(ctx, reason, sizeof reason), BK_ERR_ABSENT);
  ck_assert_msg(strstr(reason, why) != NULL, "expected \"%s\" in: %s", why, reason);
  ck_assert_int_eq(backend->device_count(ctx), 0);
  unit_expect(NULL); /* a probe says nothing of its own */
  ck_assert_int_eq(bk_device_open(ctx, name, NULL, &d), BK_ERR_ABSENT);
  unit_expect(reason);
  ck_assert_int_eq(backend->open(ctx, 0, &(bk_device_options){0}, &d), BK_ERR_ABSENT);
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

/* The one file that is kept gets a wrong bit, or loses its second half. */
static BK_UNUSED void gpu_spoil_kept(bool halve) {
  char **names, *file;
  size_t n, bytes;
  ck_assert_int_eq(bk_folder_names(ctx, unit_path("birkhoff"), &names, &n), BK_OK);
  ck_assert_uint_eq(n, 1);
  char *path = bk_path_join(ctx, unit_path("birkhoff"), names[0]);
  ck_assert_int_eq(bk_file_read_all(ctx, path, 1 << 26, &file, &bytes), BK_OK);
  file[bytes / 2] ^= !halve;
  ck_assert_int_eq(bk_file_write_atomic(ctx, path, file, halve ? bytes / 2 : bytes), BK_OK);
  bk_free(ctx, file);
  bk_free(ctx, path);
  bk_names_free(ctx, names, n);
}

/* ---- tensors ---- */

/* Gives a dense tensor memory of its own. */
static BK_UNUSED bk_tensor gpu_tensor(bk_tensor t) {
  ck_assert_int_eq(bk_buffer_alloc(device, bk_tensor_bytes(&t), BK_MEM_STAGING, &t.buffer), BK_OK);
  return t;
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

#endif
