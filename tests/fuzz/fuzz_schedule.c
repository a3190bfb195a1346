/* libFuzzer target: any bytes as the JSON of a schedule. What is accepted can be simulated, and
 * written again it is accepted again, with the same lists. */
#include "io/json_out.h"
#include "schedule/schedule.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_fs.h"

const fuzz_target fuzz = {"schedule", 15000};

static void add_numbers(bk_json_out *out, const bk_schedule *s, int rank, bool streams) {
  bk_json_out_text(out, "[");
  for (int c = 0; c < s->chunks; c++) {
    if (c) bk_json_out_text(out, ",");
    const bk_schedule_chunk *chunk = &s->rank[rank].chunks[c];
    bk_json_out_int(out, streams ? chunk->stream : chunk->stage);
  }
  bk_json_out_text(out, "]");
}

static void write_again(bk_json_out *out, bk_context *ctx, const bk_schedule *s) {
  bk_json_out_text(out, "{\"schedule\":");
  bk_json_out_string(out, s->name);
  bk_json_out_text(out, ",\"streams\":");
  add_numbers(out, s, 0, true);
  bk_json_out_text(out, ",\"micro\":");
  bk_json_out_int(out, s->micro_batches);
  bk_json_out_text(out, ",\"stages\":[");
  for (int r = 0; r < s->ranks; r++) {
    if (r) bk_json_out_text(out, ",");
    add_numbers(out, s, r, false);
  }
  bk_json_out_text(out, "],\"ranks\":[");
  for (int r = 0; r < s->ranks; r++) {
    char *line = bk_schedule_text(ctx, s, r);
    if (!line) abort();
    if (r) bk_json_out_text(out, ",");
    bk_json_out_string(out, line);
    bk_free(ctx, line);
  }
  bk_json_out_text(out, "]}");
  if (out->status != BK_OK) abort();
}

static void check_again(bk_context *ctx, const bk_schedule *s, memory_file *file) {
  bk_json_out out, again;
  bk_schedule *second = NULL;
  bk_json_out_init(&out, ctx);
  bk_json_out_init(&again, ctx);
  write_again(&out, ctx, s);
  file->data = (const unsigned char *)out.data;
  file->bytes = out.length;
  if (bk_schedule_read(ctx, "input", &second) != BK_OK) abort();
  write_again(&again, ctx, second);
  if (out.length != again.length || memcmp(out.data, again.data, out.length) != 0) abort();
  bk_schedule_destroy(ctx, second);
  bk_json_out_fini(&again);
  bk_json_out_fini(&out);
}

/* No rank works longer than the step takes, and the busiest one is not idle all the time. */
static void simulate(bk_context *ctx, const bk_schedule *s) {
  bk_timeline *t = NULL;
  bk_stage_costs *stage = bk_alloc_array(ctx, (size_t)s->stages, sizeof *stage);
  if (!stage) abort();
  for (int i = 0; i < s->stages; i++) stage[i] = (bk_stage_costs){.f = 1, .b = 2, .w = 1};
  bk_schedule_costs costs = {.stage = stage, .overlap = 0.5, .latency = 0.25, .transfer = 0.5};
  if (bk_schedule_simulate(ctx, s, &costs, &t) != BK_OK) abort();
  for (int r = 0; r < s->ranks; r++)
    if (!(t->busy[r] > 0 && t->busy[r] <= t->time)) abort();
  if (!(t->bubble >= 0 && t->bubble < t->time && t->exposed <= t->sent)) abort();
  bk_timeline_destroy(ctx, t);
  bk_free(ctx, stage);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  memory_file file = {.name = "input", .data = data, .bytes = size};
  bk_fs fs = memory_fs(&file);
  size_t logged = 0;
  bk_schedule *s = NULL;
  bk_context *ctx = memory_context(&fs, &logged);
  bk_status status = bk_schedule_read(ctx, "input", &s);
  if (status == BK_OK ? logged != 0 : logged == 0 || s) abort();
  if (s) {
    simulate(ctx, s);
    check_again(ctx, s, &file);
  }
  bk_schedule_destroy(ctx, s);
  memory_context_close(ctx, &logged);
  return 0;
}
