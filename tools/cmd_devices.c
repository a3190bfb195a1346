/* birkhoff devices: every backend that is known: what was found, what was refused and why. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "tools/cli.h"

typedef struct device_row {
  char name[128], reason[256];
  const char *status; /* "ok", "absent", "refused" */
  bk_device_props props;
  size_t memory;
  bool best; /* what a command takes without --device */
} device_row;

static json_t *dtypes_json(uint32_t set) {
  json_t *list = json_array();
  for (int d = BK_F32; d < BK_DTYPE_COUNT; d++)
    if (bk_dtype_is_float((bk_dtype)d) && (set & BK_DT(d)))
      json_array_append_new(list, json_string(bk_dtype_name((bk_dtype)d)));
  return list;
}

/* 0 and what no memory has say that there is no limit. */
static bool is_limit(size_t bytes) { return bytes > 0 && bytes < SIZE_MAX / 2; }
static json_t *size_json(size_t bytes) {
  return is_limit(bytes) ? json_integer((json_int_t)bytes) : json_null();
}

static json_t *row_json(const device_row *r) {
  bool ok = strcmp(r->status, "ok") == 0;
  json_t *row = json_pack("{s:s,s:s,s:o,s:o}", "name", r->name, "status", r->status, "reason",
                          r->reason[0] ? json_string(r->reason) : json_null(), "memory",
                          ok ? size_json(r->memory) : json_null());
  if (!row || !ok) return row;
  json_object_set_new(row, "description", json_string(r->props.name));
  json_object_set_new(row, "driver", json_string(r->props.driver));
  json_object_set_new(row, "threads", json_integer(r->props.threads));
  json_object_set_new(row, "isa", json_string(r->props.isa));
  json_object_set_new(row, "storage_dtypes", dtypes_json(r->props.storage_dtypes));
  json_object_set_new(row, "max_alloc", size_json(r->props.max_alloc));
  json_object_set_new(row, "max_binding_range", size_json(r->props.max_binding_range));
  json_object_set_new(row, "offset_alignment", json_integer((json_int_t)r->props.offset_alignment));
  json_object_set_new(row, "max_group",
                      r->props.max_group ? json_integer(r->props.max_group) : json_null());
  json_object_set_new(row, "local_memory", size_json(r->props.local_bytes));
  json_object_set_new(row, "features", json_string(r->props.features));
  json_object_set_new(row, "default", json_boolean(r->best));
  return row;
}

static void print_row(const device_row *r) {
  char memory[32] = "", limit[32];
  printf("%-10s %-8s", r->name, r->status);
  if (strcmp(r->status, "ok") != 0) {
    printf(" %s\n", r->reason);
    return;
  }
  printf(" %s%s%s, %s", r->props.name, r->props.driver[0] ? ", " : "", r->props.driver,
         cli_bytes_text((double)r->memory, memory, sizeof memory));
  if (r->props.threads) printf(", %d thread%s", r->props.threads, r->props.threads == 1 ? "" : "s");
  if (r->props.isa[0]) printf(", %s", r->props.isa);
  for (int d = BK_F32; d < BK_DTYPE_COUNT; d++)
    if (bk_dtype_is_float((bk_dtype)d) && (r->props.storage_dtypes & BK_DT(d)))
      printf(", %s", bk_dtype_name((bk_dtype)d));
  if (is_limit(r->props.max_alloc))
    printf(", buffers up to %s", cli_bytes_text((double)r->props.max_alloc, limit, sizeof limit));
  if (is_limit(r->props.max_binding_range))
    printf(", bindings up to %s",
           cli_bytes_text((double)r->props.max_binding_range, limit, sizeof limit));
  if (r->props.max_group) printf(", groups of up to %d", r->props.max_group);
  if (is_limit(r->props.local_bytes))
    printf(" with %s", cli_bytes_text((double)r->props.local_bytes, limit, sizeof limit));
  if (r->props.features[0]) printf(", %s", r->props.features);
  printf("%s\n", r->best ? " (default)" : "");
}

static bk_status emit(cli_session *s, json_t *list, const device_row *r) {
  if (!s->json) print_row(r);
  else if (json_array_append_new(list, row_json(r)) != 0)
    return bk_fail(s->ctx, BK_ERR_MEMORY, "out of memory while making the JSON result");
  return BK_OK;
}

/* A row for each line of what a probe said: devices that cannot be used, or why there is none. */
static bk_status list_reasons(cli_session *s, json_t *list, const char *name, const char *status,
                              const char *lines) {
  for (const char *end; *lines; lines = *end ? end + 1 : end) {
    device_row r = {.status = status};
    end = lines + strcspn(lines, "\n");
    snprintf(r.name, sizeof r.name, "%s", name);
    snprintf(r.reason, sizeof r.reason, "%.*s", (int)(end - lines), lines);
    BK_TRY(emit(s, list, &r));
  }
  return BK_OK;
}

/* One row per device of a backend that probes and per device that it refuses, else one row that
 * says why there is none. */
static bk_status list_backend(cli_session *s, json_t *list, const bk_backend *b, bool best) {
  char reason[1024] = "";
  bool found = b->probe(s->ctx, reason, sizeof reason) == BK_OK;
  int n = found ? b->device_count(s->ctx) : 0;
  if (found && n <= 0 && !reason[0]) snprintf(reason, sizeof reason, "%s finds no device", b->name);
  if (n <= 0)
    return list_reasons(s, list, b->name, "absent", reason[0] ? reason : "no reason given");
  for (int i = 0; i < n; i++) {
    device_row d = {.status = "ok", .best = best && i == 0};
    if (strcmp(b->name, "ref") == 0 || strcmp(b->name, "cpu") == 0)
      snprintf(d.name, sizeof d.name, "%s", b->name);
    else snprintf(d.name, sizeof d.name, "%s:%d", b->name, i);
    if (b->describe(s->ctx, i, &d.props, &d.memory) != BK_OK) {
      d.status = "refused";
      snprintf(d.reason, sizeof d.reason, "the device does not describe itself");
    }
    BK_TRY(emit(s, list, &d));
  }
  return list_reasons(s, list, b->name, "refused", reason);
}

/* As bk_device_open chooses: highest priority that probes. */
static const bk_backend *best_backend(bk_context *ctx) {
  const bk_backend *best = NULL;
  char reason[256];
  for (int i = 0; i < bk_backend_count(); i++) {
    const bk_backend *b = bk_backend_get(i);
    bool better = !best || b->priority > best->priority;
    if (better && b->probe(ctx, reason, sizeof reason) == BK_OK && b->device_count(ctx) > 0)
      best = b;
  }
  return best;
}

static bk_status list_refused(cli_session *s, json_t *list) {
  for (int i = 0; i < bk_loader_refused_count(); i++) {
    const bk_refused_module *m = bk_loader_refused_get(i);
    const char *slash = strrchr(m->path, '/');
    device_row r = {.status = "refused"};
    snprintf(r.name, sizeof r.name, "%.*s", (int)sizeof r.name - 1, slash ? slash + 1 : m->path);
    snprintf(r.reason, sizeof r.reason, "%s", m->reason);
    BK_TRY(emit(s, list, &r));
  }
  return BK_OK;
}

static bk_status run(cli_session *s) {
  BK_TRY(bk_registry_init(s->ctx));
  const bk_backend *best = best_backend(s->ctx);
  json_t *list = s->json ? json_array() : NULL;
  bk_status status = s->json && !list ? bk_fail(s->ctx, BK_ERR_MEMORY,
                                                "out of memory while making the JSON result")
                                      : BK_OK;
  for (int i = 0; i < bk_backend_count() && status == BK_OK; i++) {
    const bk_backend *b = bk_backend_get(i);
    status = list_backend(s, list, b, b == best);
  }
  if (status == BK_OK) status = list_refused(s, list);
  if (status == BK_OK) return s->json ? cli_print_json(s, list) : cli_flush_stdout(s);
  json_decref(list);
  return status;
}

static const cli_option options[] = {{NULL, CLI_FLAG, NULL, NULL}};
const cli_command cli_devices = {
    "devices", "[--json]", "Lists the devices: what was probed, what was refused and why.",
    options,   0,          0,
    run};
