/* libFuzzer target: any bytes as a case for the op harness. What is taken must run on cpu and on
 * ref, each operand in memory of its own size, without an access outside of it. */
#include "tests/ops/case_file.c" /* run.sh builds a target of one file */

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_fs.h"

const fuzz_target fuzz = {"case", 20000};

/* The arguments with operands in buffers of their own; what is only written holds zeros. */
static bk_status place(case_file *c, bk_stream *stream, bk_buffer **buffers) {
  for (int i = 0; i < c->n; i++) {
    const case_operand *o = &c->operands[i];
    bk_tensor *t = bk_op_field_ref(c->args, o->field);
    size_t bytes = t->offset + bk_tensor_span(t);
    if (o->same == i)
      BK_TRY(bk_buffer_alloc(stream->device, bytes ? bytes : 1, BK_MEM_WORKSPACE, &buffers[i]));
    t->buffer = buffers[o->same];
    if (o->values && o->same == i) BK_TRY(bk_tensor_write_f64(stream, t, o->values));
  }
  return BK_OK;
}

static void run_on(case_file *c, const bk_backend *backend) {
  bk_buffer *buffers[BK_OP_MAX_FIELDS] = {NULL};
  bk_device *device = NULL;
  bk_stream *stream = NULL;
  /* a kernel may be missing, and shapes that pass may still be refused with their places */
  bk_status status =
      bk_device_open_backend(c->ctx, backend, &(bk_device_options){.threads = 1}, &device);
  if (status == BK_OK) status = bk_stream_create(device, 0, &stream);
  if (status == BK_OK) status = place(c, stream, buffers);
  if (status == BK_OK) bk_op_run(stream, c->desc->op, c->args);
  for (int i = 0; i < c->n; i++) bk_buffer_free(buffers[i]);
  bk_stream_destroy(stream);
  bk_device_close(device);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static case_file c;
  memory_file file = {.name = "input", .data = data, .bytes = size};
  bk_fs fs = memory_fs(&file);
  size_t logged = 0;
  bk_context *ctx = memory_context(&fs, &logged);
  memset(&c, 0, sizeof c);
  bk_status status = case_file_read(ctx, "input", &c);
  if (status != BK_OK && logged == 0) abort();
  if (status == BK_OK) {
    run_on(&c, &bk_backend_cpu);
    run_on(&c, &bk_backend_ref);
  }
  case_file_free(&c);
  memory_context_close(ctx, &logged);
  return 0;
}
