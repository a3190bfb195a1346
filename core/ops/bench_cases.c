/* One case of every op at working sizes, for the benchmark. The shapes of the operands come from
 * the op's own row in runtime/ops.def: a case says what the letters in it stand for, and the
 * parameters. See bench_cases.h. */
#include "ops/bench_cases.h"

#include <string.h>

/* A line for each case that is not like the first line, which holds for all:
 *   NAME: WORD WORD ...
 *   X=VALUE  a letter of the op's dimensions, or a parameter of that name (of an op that holds
 *            other ops' arguments, what stands behind the dot)
 *   x:c      the operand is in the coefficient dtype, not in the one that is stored
 *   x@y      the operand lies in the memory of y
 *   -x       the operands whose names begin so are absent
 * A value is a number or a product of letters: N tokens of width C in n streams, B sequences of T
 * tokens, H heads of 64, V entries of the vocabulary; E experts, k of them a token; R rows of the
 * maps of mhc, F = n!; L = 2 log2(n) and A = n + 2 columns of other maps; h half of the heads. */
static const char cases[] =
    "*: B=B C=C D=C E=E G=3 H=H I=C J=1 K=nC M=N N=N P=NC Q=R R=R S=T T=T V=V X=H Y=H k=k n=n "
    "alpha=1 beta1=0.9 beta2=0.95 eps=1e-6 hc_eps=0 iters=20 n_group=4 norm_topk_prob=1 "
    "routed_scaling_factor=1 scale=0.1 theta=10000 topk_group=2 weight_decay=0.1 "
    "accumulate=0 inverse=0 overwrite=0\n"
    "sum: N=NC\n"
    "gemm: K=C N=C\n"
    "grouped_gemm: M=kN K=C N=C\n"
    "grouped_wgrad: M=kN P=C Q=C\n"
    "rope: D=32 -past\n"
    "cache_write: D=96\n"
    "attention: K=96 V=64 -past\n"
    "attention_192: H=h K=192 V=128 scale=0.07 -past\n"
    "attention_bwd: K=96 V=64\n"
    "attention_bwd_192: H=h K=192 V=128 scale=0.07\n"
    "cross_entropy: logits:c\n" /* as the head runs it: their gradient is stored */
    "permute: M=kN\n"
    "unpermute: M=kN\n"
    "unpermute_bwd: M=kN\n"
    "adamw: eps=1e-8\n"
    "hc_perm: P=F\n"
    "hc_perm_bwd: P=F\n"
    "hc_kron: P=L\n"
    "hc_kron_bwd: P=L\n"
    "hc_tanh: R=A\n"
    "hc_tanh_bwd: R=A\n"
    "hc_project_bwd: accumulate=1\n"
    "hc_pre_norm_bwd: accumulate=1\n"
    "hc_merge_mix: project.x@merge.out pre_norm.x@merge.out maps.proj@project.proj "
    "maps.rinv@project.rinv pre_norm.pre@maps.pre\n"
    "hc_merge_mix_bwd: accumulate=1 project.x@pre_norm.x maps.dpre@pre_norm.dpre "
    "project.dproj@maps.dproj project.drinv@maps.drinv project.dx@pre_norm.dx "
    "merge.dout@pre_norm.dx merge.dx@pre_norm.dx\n"
    "hc_rebuild: layers=4 -layer3.f -layer3.post -layer3.comb -layer4 -layer5 -layer6 -layer7\n";

/* Cases beside the first one of an op. */
static const struct {
  bk_op op;
  char name[24];
} more_cases[] = {{BK_OP_ATTENTION, "attention_192"}, {BK_OP_ATTENTION_BWD, "attention_bwd_192"}};

const char *bk_bench_case_name(bk_op op, int i) {
  if (i == 0) return bk_op_name(op);
  for (size_t k = 0; k < BK_COUNT(more_cases); k++)
    if (more_cases[k].op == op && --i == 0) return more_cases[k].name;
  return NULL;
}

/* ---- words ---- */

/* The words of a case; "" where it has no line. */
static const char *words_of(const char *name) {
  size_t length = strlen(name);
  for (const char *line = cases; *line; line += strcspn(line, "\n") + 1)
    if (strncmp(line, name, length) == 0 && line[length] == ':') return line + length + 1;
  return "";
}

#define WORD BK_BENCH_WORD

/* The next word of the line. The result is false at the end of the line, and for a word that is too
 * long, which no case may have. */
static bool next_word(const char **at, char word[WORD]) {
  *at += strspn(*at, " ");
  size_t length = strcspn(*at, " \n");
  if (length == 0 || length >= WORD) return false;
  memcpy(word, *at, length);
  word[length] = '\0';
  *at += length;
  return true;
}

/* What stands behind `key` and the mark, "=" or "@" or ":". */
static bool find_word(const char *words, const char *key, char mark, char value[WORD]) {
  char word[WORD];
  size_t length = strlen(key);
  while (next_word(&words, word))
    if (strncmp(word, key, length) == 0 && word[length] == mark) {
      memmove(value, word + length + 1, strlen(word + length + 1) + 1);
      return true;
    }
  return false;
}

bool bk_bench_case_place(const char *name, const char *field, char place[BK_BENCH_WORD]) {
  return find_word(words_of(name), field, '@', place);
}

/* "-layer4" leaves out all operands of that layer. */
static bool is_absent(const char *words, const char *field) {
  char word[WORD];
  while (next_word(&words, word))
    if (word[0] == '-' && strncmp(word + 1, field, strlen(word + 1)) == 0) return true;
  return false;
}

/* ---- values ---- */

typedef struct one_case {
  bk_context *ctx;
  const bk_bench_sizes *sizes;
  const char *name, *words;
} one_case;

/* A letter that no case names is n, the streams. */
static int64_t size_of(const bk_bench_sizes *z, char letter) {
  switch (letter) {
    case 'A': return z->n + 2;
    case 'B': return z->B;
    case 'C': return z->C;
    case 'E': return BK_BENCH_EXPERTS;
    case 'F': return bk_factorial((int)z->n);
    case 'H': return z->H;
    case 'L': return z->n < 2 ? 0 : z->n < 4 ? 2 : z->n < 8 ? 4 : 6;
    case 'N': return z->N;
    case 'R': return z->n * (z->n + 2);
    case 'T': return z->T;
    case 'V': return z->V;
    case 'h': return (z->H + 1) / 2;
    case 'k': return BK_BENCH_CHOICES;
    default: return z->n;
  }
}

/* The case's own word comes before that of the first line. A text that is no number is a product of
 * letters. */
static bk_status value_of(const one_case *c, const char *key, double *value) {
  char text[WORD];
  if (!find_word(c->words, key, '=', text) && !find_word(words_of("*"), key, '=', text))
    return bk_fail(c->ctx, BK_ERR_NOT_FOUND,
                   "bench: ops/bench_cases.c does not say what %s is for %s", key, c->name);
  if (bk_parse_double(text, value)) return BK_OK;
  *value = 1;
  for (const char *letter = text; *letter; letter++) *value *= (double)size_of(c->sizes, *letter);
  return BK_OK;
}

static bk_status letter_of(const one_case *c, char letter, int64_t *size) {
  double value = 1;
  if (letter) BK_TRY(value_of(c, (char[]){letter, '\0'}, &value));
  *size *= (int64_t)value;
  return BK_OK;
}

/* A dimension is "N*k", "E+1" or a number, as runtime/op_priv.h packs them. */
static bk_status dim_of(const one_case *c, uint16_t dim, int64_t *size) {
  *size = bk_dim_first(dim) ? 1 : 0;
  BK_TRY(letter_of(c, bk_dim_first(dim), size));
  BK_TRY(letter_of(c, bk_dim_second(dim), size));
  *size += bk_dim_number(dim);
  return BK_OK;
}

/* ---- arguments ---- */

/* An operand that may be of any float dtype is stored, unless the case says `:c`. */
static bk_dtype dtype_of(const one_case *c, const bk_op_field *field) {
  char text[WORD];
  int type = field->type & BK_TYPE_MASK;
  if (type == BK_TYPE_I) return BK_I32;
  return type == BK_TYPE_C || find_word(c->words, field->name, ':', text) ? c->sizes->ct
                                                                          : c->sizes->st;
}

/* An operand of any shape is [N, C]; one that may be a batch of matrices is a single one. */
static bk_status make_field(const one_case *c, const bk_op_field *field, bk_tensor *t) {
  int64_t shape[BK_MAX_DIMS] = {c->sizes->N, c->sizes->C};
  int first = field->type & BK_BATCHED ? 1 : 0, ndim = field->dim[0] ? 0 : 2;
  for (int d = first; d < BK_MAX_DIMS && field->dim[d]; d++)
    BK_TRY(dim_of(c, field->dim[d], &shape[ndim++]));
  *t = bk_tensor_make(dtype_of(c, field), ndim, shape);
  return BK_OK;
}

/* A kind is always mhc, the connection that this library is about. */
static bk_status make_param(const one_case *c, const bk_op_param *p, void *at) {
  double value = BK_HC_MHC;
  const char *dot = strchr(p->name, '.');
  if (p->type != BK_OP_PARAM_KIND) BK_TRY(value_of(c, dot ? dot + 1 : p->name, &value));
  if (p->type == BK_OP_PARAM_KIND) *(bk_hc_kind *)at = (bk_hc_kind)value;
  else if (p->type == BK_OP_PARAM_INT) *(int *)at = (int)value;
  else if (p->type == BK_OP_PARAM_FLAG) *(bool *)at = value != 0;
  else *(double *)at = value;
  return BK_OK;
}

bk_status bk_bench_case_make(bk_context *ctx, const bk_bench_sizes *sizes, bk_op op,
                             const char *name, bk_any_args *args) {
  const bk_op_desc *d = bk_op_describe(op);
  const one_case c = {ctx, sizes, name, words_of(name)};
  memset(args, 0, sizeof *args);
  for (int i = 0; i < d->n_fields; i++)
    if (!is_absent(c.words, d->fields[i].name))
      BK_TRY(make_field(&c, &d->fields[i], bk_op_field_ref(args, &d->fields[i])));
  for (const bk_op_param *p = d->params; p->type != BK_OP_PARAM_END; p++)
    BK_TRY(make_param(&c, p, (char *)args + p->offset));
  /* weights that are stored in full are their own masters */
  if (op == BK_OP_ADAMW && sizes->st == sizes->ct) args->ADAMW.master = (bk_tensor){0};
  return BK_OK;
}
