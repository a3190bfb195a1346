/* The list of kinds, in the order of their numbers (birkhoff/types.h). A new one adds its line to
 * both; its file has the rest. */
#include "models/connections/connection.h"

/* The head comes after all kinds that a configuration can name, and has no name for one. */
#define KINDS(X) \
  X(plain)       \
  X(hc)          \
  X(mhc)         \
  X(mhc_lite)    \
  X(ihc)         \
  X(kromhc)

#define DECLARE(name) extern const bk_connection_kind bk_connection_##name;
KINDS(DECLARE)
DECLARE(head)

#define ADDRESS(name) &bk_connection_##name,
/* The index is a bk_hc_kind. bk_connection_kind_of (runtime/connection.c) looks here. */
const bk_connection_kind *const bk_connection_kinds[] = {KINDS(ADDRESS) ADDRESS(head) NULL};
#define NAME(name) #name,
const char *const bk_connection_names[] = {KINDS(NAME) NULL};
