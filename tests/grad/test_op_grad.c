/* test_op_grad: every backward op is the derivative of its forward (grad.h). composed ops are
 * checked as `ref` has them and as composed. Every op whose name ends in _bwd must come up, and
 * the ops that are the backward of another. */
#include "tests/grad/grad.h"

#include <stdio.h>
#include <string.h>

static void print_line(void *user, bk_log_level level, const char *message) {
  (void)level;
  ++*(int *)user;
  fprintf(stderr, "%s\n", message);
}

static bk_status open_ref(grad_test *g, bool composed) {
  bk_device_options options = {.composed_only = composed};
  BK_TRY(bk_device_open(g->ctx, "ref", &options, &g->ref));
  return bk_stream_create(g->ref, 0, &g->stream);
}

static void close_ref(grad_test *g) {
  bk_stream_destroy(g->stream);
  bk_device_close(g->ref);
  g->stream = NULL;
  g->ref = NULL;
}

static bool must_be_covered(bk_op op) {
  const bk_op mirrors[] = {BK_OP_GEMM,      BK_OP_GROUPED_GEMM,  BK_OP_GROUPED_WGRAD,
                           BK_OP_ROPE,      BK_OP_CROSS_ENTROPY, BK_OP_PERMUTE,
                           BK_OP_UNPERMUTE, BK_OP_HC_EXPAND,     BK_OP_HC_COLLAPSE};
  const char *name = bk_op_name(op);
  for (size_t i = 0; i < BK_COUNT(mirrors); i++) {
    if (mirrors[i] == op) return true;
  }
  return strlen(name) > 4 && strcmp(name + strlen(name) - 4, "_bwd") == 0;
}

static void check_coverage(grad_test *g) {
  for (int op = 1; op < BK_OP_COUNT; op++) {
    if (!must_be_covered((bk_op)op) || g->covered[op]) continue;
    printf("FAIL %s was never checked as a backward\n", bk_op_name((bk_op)op));
    g->failed++;
  }
}

int main(void) {
  grad_test g = {0};
  int lines = 0;
  bk_context_options options = {.log = print_line, .log_user = &lines, .log_level = BK_LOG_WARN};
  if (bk_context_create(&options, &g.ctx) != BK_OK || bk_registry_init(g.ctx) != BK_OK) return 1;
  if (open_ref(&g, false) != BK_OK) return 1;
  grad_layers(&g);
  grad_streams(&g);
  grad_composed(&g);
  close_ref(&g);
  if (open_ref(&g, true) != BK_OK) return 1;
  grad_composed(&g);
  close_ref(&g);
  check_coverage(&g);
  bk_context_destroy(g.ctx);
  printf("%s: %d gradients checked, %d failed\n", g.failed || lines ? "FAIL" : "ok", g.checks,
         g.failed);
  return g.failed || lines;
}
