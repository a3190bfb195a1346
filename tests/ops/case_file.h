/* A case from a file that `birkhoff verify --bisect` wrote (models/bisect_case.c; doc/testing.md
 * has the format). The file is not trusted: what passes the checks here and those of the op makes
 * no kernel read or write outside of its operands. */
#ifndef BK_TESTS_CASE_FILE_H
#define BK_TESTS_CASE_FILE_H

#include "io/safetensors.h"
#include "ops/ops.h"

typedef struct case_operand {
  const bk_op_field *field;
  double *values; /* [count], in its dtype's numbers; NULL: it is only written */
  int64_t count;
  int same; /* the operand in whose memory it lies; its own number: in none's */
} case_operand;

typedef struct case_file {
  bk_context *ctx;
  const char *path;
  bk_st_reader *reader;
  const bk_op_desc *desc;
  const char *stage; /* for people; lives as long as the case */
  case_operand operands[BK_OP_MAX_FIELDS];
  int n;
  int taken;    /* tensors of the file */
  size_t bytes; /* of all operands, with their gaps */
  /* tensors without a place: the offset is what it is modulo 256 */
  _Alignas(16) char args[BK_OP_MAX_ARGS];
} case_file;

/* Into a zeroed case; BK_ERR_DATA and others, logged. Free works on any state. */
bk_status case_file_read(bk_context *ctx, const char *path, case_file *c);
void case_file_free(case_file *c);

#endif
