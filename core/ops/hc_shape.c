/* Row counts of the residual connections' parameters; the table is in op.h. */
#include "ops/ops.h"

int bk_factorial(int n) {
  int product = 1;
  for (int i = 2; i <= n; i++) product *= i;
  return product;
}

int bk_hc_rows(bk_hc_kind kind, int n) {
  switch (kind) {
    case BK_HC_HC: return n + 2;
    case BK_HC_MHC: return n * (n + 2);
    case BK_HC_MHC_LITE: return 2 * n + bk_factorial(n);
    case BK_HC_IHC: return 2 * n;
    case BK_HC_HEAD: return n;
    case BK_HC_PLAIN: break;
  }
  return 0;
}

int bk_hc_base_count(bk_hc_kind kind, int n) {
  return kind == BK_HC_HC ? n * (n + 2) : bk_hc_rows(kind, n);
}

int bk_hc_scale_count(bk_hc_kind kind) {
  switch (kind) {
    case BK_HC_HC:
    case BK_HC_MHC:
    case BK_HC_MHC_LITE: return 3;
    case BK_HC_IHC: return 2;
    case BK_HC_HEAD: return 1;
    case BK_HC_PLAIN: break;
  }
  return 0;
}
