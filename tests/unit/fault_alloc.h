/* Allocations that fail where a test wants it: a context's allocator, and jansson's functions,
 * count together; the `fail_at`-th from faults_begin on is refused, and with `dead` all later
 * ones too. What is held is counted, so that a leak shows. */
#ifndef BK_TESTS_FAULT_ALLOC_H
#define BK_TESTS_FAULT_ALLOC_H

#include "tests/unit/unit.h"

#include <jansson.h>

typedef struct fault_allocations {
  int64_t seen, fail_at, refused; /* since fault_alloc_begin; fail_at 0: none fails */
  int64_t refused_json;           /* of these jansson's */
  bool dead;
  int64_t blocks; /* held now */
} fault_allocations;
static fault_allocations fault_alloc;

static BK_UNUSED void fault_alloc_begin(int64_t fail_at, bool dead) {
  fault_alloc = (fault_allocations){.fail_at = fail_at, .dead = dead, .blocks = fault_alloc.blocks};
}

static bool fault_alloc_refuses(void) {
  int64_t n = ++fault_alloc.seen, at = fault_alloc.fail_at;
  bool refuse = at && (n == at || (fault_alloc.dead && n > at));
  fault_alloc.refused += refuse;
  return refuse;
}

static void *fault_context_alloc(void *user, size_t bytes, size_t align) {
  if (fault_alloc_refuses()) return NULL;
  void *block = bk_allocator_libc.alloc(user, bytes, align);
  fault_alloc.blocks += block != NULL;
  return block;
}

static void fault_context_free(void *user, void *ptr, size_t bytes) {
  fault_alloc.blocks--;
  bk_allocator_libc.free(user, ptr, bytes);
}

static void *fault_json_malloc(size_t bytes) {
  bool refuse = fault_alloc_refuses();
  fault_alloc.refused_json += refuse;
  void *block = refuse ? NULL : malloc(bytes);
  fault_alloc.blocks += block != NULL;
  return block;
}

static void fault_json_free(void *ptr) {
  if (!ptr) return;
  fault_alloc.blocks--;
  free(ptr);
}

static const bk_allocator fault_allocator = {fault_context_alloc, fault_context_free, NULL};

/* As unit_open and unit_close, over the allocator. */
static BK_UNUSED void fault_open(void) {
  bk_context_options options = {
      .allocator = &fault_allocator, .log = unit_log, .log_level = BK_LOG_TRACE};
  fault_alloc = (fault_allocations){0};
  unit_messages[0] = '\0';
  json_set_alloc_funcs(fault_json_malloc, fault_json_free);
  ck_assert_int_eq(bk_context_create(&options, &ctx), BK_OK);
}

static BK_UNUSED void fault_close(void) {
  unit_close();
  ck_assert_int_eq(fault_alloc.blocks, 0);
}

/* Runs `operation`, which undoes all that it did, with its 1st, 2nd, 3rd ... allocation refused,
 * until it passes. Each failure must be BK_ERR_MEMORY, logged once, and leave nothing behind.
 * `skip`: how far apart the refused ones lie after the first 40. Returns the number of
 * allocations that the operation makes. */
static BK_UNUSED int64_t fault_each_allocation(const char *name, bk_status (*operation)(void),
                                               int64_t skip) {
  /* and whatever is made once, is made now */
  ck_assert_msg(operation() == BK_OK, "%s fails by itself:\n%s", name, unit_messages);
  unit_expect(NULL);
  for (int dead = 0; dead < 2; dead++) {
    int64_t before = fault_alloc.blocks;
    for (int64_t k = 1;; k += k < 40 ? 1 : skip) {
      fault_alloc_begin(k, dead);
      bk_status status = operation();
      bool refused = fault_alloc.refused > 0;
      ck_assert_msg(fault_alloc.blocks == before, "%s, allocation %lld: %lld blocks leaked", name,
                    (long long)k, (long long)(fault_alloc.blocks - before));
      if (!refused) {
        ck_assert_msg(status == BK_OK, "%s: status %s without a failure:\n%s", name,
                      bk_status_name(status), unit_messages);
        unit_expect(NULL);
        break;
      }
      /* jansson may take it for bad syntax */
      bool misread = status == BK_ERR_DATA && fault_alloc.refused_json;
      ck_assert_msg(status == BK_ERR_MEMORY || misread, "%s, allocation %lld: status %s:\n%s", name,
                    (long long)k, bk_status_name(status), unit_messages);
      ck_assert_msg(misread || strstr(unit_messages, "out of memory") != NULL,
                    "%s, allocation %lld: not said:\n%s", name, (long long)k, unit_messages);
      ck_assert_msg(dead || unit_errors() == 1, "%s, allocation %lld: not one error:\n%s", name,
                    (long long)k, unit_messages);
      unit_messages[0] = '\0';
    }
  }
  int64_t count = fault_alloc.seen;
  fault_alloc_begin(0, false);
  return count;
}

#endif
