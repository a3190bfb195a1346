/* What is checked of a backend before anything of it is used. A module may have been built for
 * another version of this library, so that nothing in its table can be taken for granted. */
#include "runtime/registry_priv.h"

#include <stdio.h>
#include <string.h>

#define KERNELS_MAX 4096 /* rows; a longer table must have lost its end mark */

/* Copies each pointer out of the table, since C allows no other look at a function pointer of
 * unknown type. */
bool bk_vtable_has_hole(const void *vtable, size_t bytes) {
  for (size_t at = 0; at + sizeof(void (*)(void)) <= bytes; at += sizeof(void (*)(void))) {
    void (*member)(void);
    memcpy(&member, (const char *)vtable + at, sizeof member);
    if (!member) return true;
  }
  return false;
}

static bool named(const bk_kernel *k) { return k->name[0] && memchr(k->name, 0, sizeof k->name); }

/* Whether the op has a parameter that names a kind of connection. */
static bool has_kind(bk_op op) {
  for (const bk_op_param *p = bk_op_describe(op)->params; p->type != BK_OP_PARAM_END; p++)
    if (p->type == BK_OP_PARAM_KIND) return true;
  return false;
}

/* A row of an op with a kind must name the kinds it serves. A row without any would never be
 * chosen, which its author would only notice by a missing kernel. */
static bk_status verify_kernels(const bk_backend *b, char *reason, size_t reason_size) {
  for (int i = 0; i < KERNELS_MAX; i++) {
    const bk_kernel *k = &b->kernels[i];
    if (k->op == BK_OP_NONE) return BK_OK;
    bool whole = (unsigned)k->op < BK_OP_COUNT && k->dtypes && named(k) && k->accepts &&
                 k->prepare && k->launch && k->release;
    if (whole && (k->kinds || !has_kind(k->op))) continue;
    if (whole) {
      snprintf(reason, reason_size, "row %d (%s) of its kernel table takes no kind of connection",
               i, k->name);
      return BK_ERR_ABI;
    }
    snprintf(reason, reason_size, "row %d (%s) of its kernel table has a hole", i,
             named(k) ? k->name : "no name");
    return BK_ERR_ABI;
  }
  snprintf(reason, reason_size, "its kernel table has no end within %d rows", KERNELS_MAX);
  return BK_ERR_ABI;
}

static bool valid_name(const char *name) {
  size_t length = name ? strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") : 0;
  return length > 0 && length < 32 && name[length] == '\0';
}

/* The ABI number comes first in the struct in every version; nothing else may be read before it
 * agrees. */
bk_status bk_backend_verify(const bk_backend *b, char *reason, size_t reason_size) {
  if (!b) {
    snprintf(reason, reason_size, "it is NULL");
    return BK_ERR_ABI;
  }
  if (b->abi != BK_BACKEND_ABI) {
    snprintf(reason, reason_size, "it was built for ABI %u, this library has ABI %u",
             (unsigned)b->abi, BK_BACKEND_ABI);
    return BK_ERR_ABI;
  }
  if (!valid_name(b->name)) {
    snprintf(reason, reason_size, "its name must be lower-case letters, digits and _, at most 31");
    return BK_ERR_ABI;
  }
  if (!b->probe || !b->device_count || !b->describe || !b->open || !b->kernels) {
    snprintf(reason, reason_size, "its backend table has a hole");
    return BK_ERR_ABI;
  }
  return verify_kernels(b, reason, reason_size);
}
