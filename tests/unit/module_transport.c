/* A module of the transport mpi for test_transports, as TABLE says: whole, of another ABI, with
 * holes, under another name. Complete on its own: it asks the program for no symbol. */
#include "comm/transport.h"

static bk_status probe(bk_context *ctx, char *reason, size_t reason_size, char *description,
                       size_t description_size) {
  static const char what[] = "a module for tests";
  (void)ctx, (void)reason, (void)reason_size;
  for (size_t i = 0; i < description_size && i < sizeof what; i++) description[i] = what[i];
  return BK_OK;
}

static bk_status fail_to_open(bk_context *ctx, bk_job_options *options, bk_wire **wire) {
  (void)ctx, (void)options, (void)wire;
  return BK_ERR_UNSUPPORTED;
}

static const bk_transport whole = {BK_COMM_ABI, "mpi", probe, fail_to_open};
static const bk_transport no_probe = {BK_COMM_ABI, "mpi", NULL, fail_to_open};
static const bk_transport no_open = {BK_COMM_ABI, "mpi", probe, NULL};
static const bk_transport no_name = {BK_COMM_ABI, NULL, probe, fail_to_open};
static const bk_transport other_name = {BK_COMM_ABI, "other", probe, fail_to_open};
/* Behind the number nothing is as this library expects. */
static const struct {
  uint32_t abi;
  char other[sizeof(bk_transport)];
} other_abi = {BK_COMM_ABI + 1, "the fields of another version"};

const bk_transport *bk_transport_module(void) {
  static const bk_transport *const tables[] = {
      &whole,   &no_probe,   &no_open,
      &no_name, &other_name, (const bk_transport *)(const void *)&other_abi,
      NULL};
  return tables[TABLE];
}
