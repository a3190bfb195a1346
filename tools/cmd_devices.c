/* birkhoff devices: every backend that is known: what was found, what was refused and why; and the
 * same of the transports between ranks. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "tools/cli.h"

static const char *const state_names[] = {"ok", "absent", "refused"}; /* as bk_device_state */

/* What models may be stored in: the floating-point types come first in bk_dtype. */
static json_t *dtypes_json(uint32_t set) {
  json_t *list = json_array();
  for (int d = BK_F32; d <= BK_F64; d++)
    if (set & BK_DT(d)) json_array_append_new(list, json_string(bk_dtype_name((bk_dtype)d)));
  return list;
}

/* 0 and what no memory has say that there is no limit. */
static bool is_limit(size_t bytes) { return bytes > 0 && bytes < SIZE_MAX / 2; }
static json_t *size_json(size_t bytes) {
  return is_limit(bytes) ? json_integer((json_int_t)bytes) : json_null();
}

static json_t *row_json(const bk_device_report *r) {
  bool ok = r->state == BK_DEVICE_OK;
  json_t *row = json_pack("{s:s,s:s,s:o,s:o}", "name", r->name, "status", state_names[r->state],
                          "reason", r->reason[0] ? json_string(r->reason) : json_null(), "memory",
                          ok ? size_json(r->memory_bytes) : json_null());
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
  json_object_set_new(row, "default", json_boolean(r->is_default));
  return row;
}

static void print_row(const bk_device_report *r) {
  char memory[32] = "", limit[32];
  printf("%-10s %-8s", r->name, state_names[r->state]);
  if (r->state != BK_DEVICE_OK) {
    printf(" %s\n", r->reason);
    return;
  }
  printf(" %s%s%s", r->props.name, r->props.driver[0] ? ", " : "", r->props.driver);
  if (r->memory_bytes)
    printf(", %s", cli_bytes_text((double)r->memory_bytes, memory, sizeof memory));
  if (r->props.threads) printf(", %d thread%s", r->props.threads, r->props.threads == 1 ? "" : "s");
  if (r->props.isa[0]) printf(", %s", r->props.isa);
  for (int d = BK_F32; d <= BK_F64; d++)
    if (r->props.storage_dtypes & BK_DT(d)) printf(", %s", bk_dtype_name((bk_dtype)d));
  if (is_limit(r->props.max_alloc))
    printf(", buffers up to %s", cli_bytes_text((double)r->props.max_alloc, limit, sizeof limit));
  if (is_limit(r->props.max_binding_range))
    printf(", bindings up to %s",
           cli_bytes_text((double)r->props.max_binding_range, limit, sizeof limit));
  if (r->props.max_group) printf(", groups of up to %d", r->props.max_group);
  if (is_limit(r->props.local_bytes))
    printf(" with %s", cli_bytes_text((double)r->props.local_bytes, limit, sizeof limit));
  if (r->props.features[0]) printf(", %s", r->props.features);
  printf("%s\n", r->is_default ? " (default)" : "");
}

typedef struct listing {
  cli_session *s;
  json_t *list; /* NULL: text */
} listing;

static bk_status out_of_memory(const cli_session *s) {
  return bk_fail(s->ctx, BK_ERR_MEMORY, "out of memory while making the JSON result");
}

static json_t *text_json(const char *text) { return text[0] ? json_string(text) : json_null(); }

static bk_status emit_transport(void *user, const bk_transport_report *r) {
  listing *l = user;
  const char *state = state_names[r->usable ? BK_DEVICE_OK : BK_DEVICE_ABSENT];
  if (!l->s->json) {
    printf("transport %-8s %-8s %s\n", r->name, state, r->usable ? r->description : r->reason);
    return BK_OK;
  }
  json_t *row = json_pack("{s:s,s:s,s:o,s:o}", "name", r->name, "status", state, "reason",
                          text_json(r->reason), "description", text_json(r->description));
  return json_array_append_new(l->list, row) == 0 ? BK_OK : out_of_memory(l->s);
}

static bk_status emit(void *user, const bk_device_report *r) {
  listing *l = user;
  if (!l->s->json) print_row(r);
  else if (json_array_append_new(l->list, row_json(r)) != 0) return out_of_memory(l->s);
  return BK_OK;
}

/* The value of --json was a list of devices before there were transports, and stays one. */
static bk_status list(cli_session *s, listing *l) {
  bool transports = cli_given(&s->args, "transports");
  if (!transports) BK_TRY(bk_devices(s->ctx, emit, l));
  return transports || !s->json ? bk_transports(s->ctx, emit_transport, l) : BK_OK;
}

static bk_status run(cli_session *s) {
  listing l = {s, s->json ? json_array() : NULL};
  if (s->json && !l.list) return out_of_memory(s);
  bk_status status = list(s, &l);
  if (status == BK_OK) return s->json ? cli_print_json(s, l.list) : cli_flush_stdout(s);
  json_decref(l.list);
  return status;
}

static const cli_option options[] = {
    {"transports", CLI_FLAG, NULL, "list what moves data between ranks, and no devices"},
    {NULL, CLI_FLAG, NULL, NULL}};
const cli_command cli_devices = {
    "devices",
    "[--transports] [--json]",
    "Lists devices and transports: what was probed, what was refused and why.",
    options,
    0,
    0,
    run};
