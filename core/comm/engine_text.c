/* Operations in words: what a rank is at, how two ranks' views differ, and who has not come. */
#include "comm/engine_priv.h"

#include <stdio.h>
#include <string.h>

const char *bk_kind_name(int kind) {
  static const char *const names[BK_KIND_COUNT] = {
      "all_reduce", "reduce_scatter", "all_gather", "all_to_all", "all_to_allv", "broadcast",
      "barrier",    "gather",         "send",       "receive",    "leave",       "fault"};
  return kind >= 0 && kind < BK_KIND_COUNT ? names[kind] : "?";
}

void bk_header_describe(const bk_header *h, char *text, size_t size) {
  const char *name = bk_kind_name(h->kind), *dtype = bk_dtype_name((bk_dtype)h->dtype);
  unsigned long long number = h->number;
  long long count = h->count;
  switch (h->kind) {
    case BK_ALL_REDUCE:
    case BK_REDUCE_SCATTER:
      snprintf(text, size, "%s %llu: %s [%lld], %s", name, number, dtype, count,
               h->reduce == BK_REDUCE_SUM ? "sum" : "max");
      break;
    case BK_ALL_TO_ALLV:
      snprintf(text, size, "%s %llu: rows of %s [%lld], %lld to the other and %lld from it", name,
               number, dtype, count, (long long)h->give, (long long)h->take);
      break;
    case BK_BROADCAST:
      snprintf(text, size, "%s %llu: %s [%lld], root %d", name, number, dtype, count, h->root);
      break;
    case BK_BARRIER: snprintf(text, size, "%s %llu", name, number); break;
    case BK_GATHER: snprintf(text, size, "%s %llu: %lld bytes", name, number, count); break;
    case BK_SEND:
    case BK_RECEIVE:
      snprintf(text, size, "a %s of exchange %llu: %s [%lld], tag %d", name, number, dtype, count,
               h->tag);
      break;
    case BK_LEAVE: snprintf(text, size, "the end of the job"); break;
    default: snprintf(text, size, "%s", name);
  }
}

static bool fits(const bk_header *own, const bk_header *theirs) {
  if (own->kind == BK_SEND || own->kind == BK_RECEIVE)
    return own->kind + theirs->kind == BK_SEND + BK_RECEIVE && own->group == theirs->group &&
           own->tag == theirs->tag && own->dtype == theirs->dtype && own->count == theirs->count;
  return own->kind == theirs->kind && own->group == theirs->group &&
         own->number == theirs->number && own->reduce == theirs->reduce &&
         own->dtype == theirs->dtype && own->root == theirs->root && own->count == theirs->count &&
         own->give == theirs->take && own->take == theirs->give;
}

bool bk_header_compare(const bk_header *own, const bk_header *theirs, int rank, int peer,
                       char *text, size_t size) {
  char a[160], b[160];
  if (fits(own, theirs)) return true;
  bk_header_describe(own, a, sizeof a);
  bk_header_describe(theirs, b, sizeof b);
  snprintf(text, size, "rank %d is at %s; rank %d is at %s%s", rank, a, peer, b,
           own->group == theirs->group || theirs->kind == BK_LEAVE ? "" : ", in another group");
  return false;
}

bool bk_header_valid(bk_header *h, int peer) {
  if (h->magic != BK_HEADER_MAGIC || h->from != peer || h->kind < 0 || h->kind >= BK_KIND_COUNT)
    return false;
  if (h->dtype < 0 || h->dtype >= BK_DTYPE_COUNT || h->count < 0 || h->give < 0 || h->take < 0)
    return false;
  h->text[sizeof h->text - 1] = '\0';
  for (char *c = h->text; *c; c++)
    if ((unsigned char)*c < ' ') *c = ' ';
  return true;
}

/* What a rank that has not come is doing, as far as it has said. */
static void add_whereabouts(const bk_engine *e, int peer, char *text, size_t size) {
  const bk_inbox *inbox = &e->inboxes[peer];
  char there[160];
  if (inbox->n == 0) return;
  bk_header_describe(&inbox->headers[0], there, sizeof there);
  size_t used = strlen(text);
  snprintf(text + used, size - used, "; it is at %s", there);
}

/* "rank 2", "ranks 1, 2": those of the flows that were not matched, at most eight. */
static int name_ranks(const bk_operation *o, char *text, size_t size) {
  int n = 0, last = -1;
  size_t used = 0;
  for (int i = 0; i < o->n_flows; i++) n += !o->flows[i].matched;
  text[0] = '\0';
  for (int i = 0, named = 0; i < o->n_flows && named < 8; i++) {
    if (o->flows[i].matched || o->flows[i].peer == last) continue;
    last = o->flows[i].peer;
    int w = snprintf(text + used, size - used, "%s%d",
                     named++ ? ", "
                     : n > 1 ? "ranks "
                             : "rank ",
                     last);
    used = w > 0 && used + (size_t)w < size ? used + (size_t)w : size - 1;
  }
  if (n > 8) snprintf(text + used, size - used, ", ...");
  return n;
}

/* A rank with which data of the operation are still under way; -1: there is none. */
static int stuck_with(const bk_engine *e, const bk_operation *o) {
  for (int i = 0; i < e->n_slots; i++)
    if (e->messages[e->slots[i]].operation == o) return e->messages[e->slots[i]].peer;
  return -1;
}

void bk_operation_missing(bk_engine *e, const bk_operation *o, char *text, size_t size) {
  char ranks[96], what[64];
  snprintf(what, sizeof what, "%s %llu", o->kind == BK_SEND ? "exchange" : bk_kind_name(o->kind),
           (unsigned long long)o->number);
  int n = name_ranks(o, ranks, sizeof ranks);
  if (n == 0) {
    int peer = stuck_with(e, o);
    if (peer >= 0)
      snprintf(text, size, "rank %d has not gone on with %s for %g s", peer, what, e->timeout_s);
    else snprintf(text, size, "%s has not ended for %g s", what, e->timeout_s);
    return;
  }
  snprintf(text, size, "%s %s not come to %s for %g s", ranks, n > 1 ? "have" : "has", what,
           e->timeout_s);
  for (int i = 0; n == 1 && i < o->n_flows; i++)
    if (!o->flows[i].matched) add_whereabouts(e, o->flows[i].peer, text, size);
}
