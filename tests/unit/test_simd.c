/* The vector layer of the cpu backend on every instruction set that this machine has. */
#include "tests/unit/simd.h"
#include "tests/unit/unit.h"

START_TEST(every_set_agrees_with_scalar_code) {
#define ROW(isa, ISA, ...) {BK_CPU_##ISA, simd_check_##isa},
  static const struct {
    bk_cpu_isa isa;
    const char *(*check)(void);
  } sets[] = {BK_CPU_ISAS(ROW, 0)};
  for (size_t i = 0; i < BK_COUNT(sets); i++) {
    const char *name = bk_cpu_isa_name(sets[i].isa), *message;
    if (!bk_cpu_isa_runs(sets[i].isa)) {
      printf("not here: %s\n", name);
      continue;
    }
    message = sets[i].check();
    ck_assert_msg(!message, "%s: %s", name, message);
  }
}
END_TEST

int main(void) {
  const TTest *const tests[] = {every_set_agrees_with_scalar_code};
  Suite *suite = suite_create("simd");
  unit_case(suite, "vector layer", unit_open, unit_close, tests, BK_COUNT(tests));
  return unit_run(suite);
}
