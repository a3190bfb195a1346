/* What the process has of the machine: processors and memory. In a container the machine's own
 * numbers are too large, so that the limits of control groups (cgroup.c) lower both. */
#include "base/base.h"

#ifdef __linux__
#include <sched.h>
#endif
#include <stdio.h>
#include <unistd.h>

/* The processors that this process may run on, which taskset and job schedulers restrict. */
static long processors(void) {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  return sysconf(_SC_NPROCESSORS_ONLN);
}

int bk_cpu_count(void) {
  long n = processors();
  return bk_cgroup_cpus("", n < 1 ? 1 : n > BK_MAX_THREADS ? BK_MAX_THREADS : (int)n);
}

/* MemAvailable counts what the kernel would give up under pressure, above all its cache of files.
 * The number of free pages does not, and is small on any machine that has run for a while. */
static bool available_kib(unsigned long long *kib) {
  FILE *file = fopen("/proc/meminfo", "re");
  if (!file) return false;
  char line[128];
  bool found = false;
  while (!found && fgets(line, sizeof line, file))
    found = sscanf(line, "MemAvailable: %llu kB", kib) == 1;
  fclose(file);
  return found;
}

/* Where the system does not say what is free, the answer is 0 and not a guess. */
static bool machine_memory(size_t *free_bytes, size_t *total_bytes) {
  long page = sysconf(_SC_PAGESIZE), pages = sysconf(_SC_PHYS_PAGES);
  if (page <= 0 || pages <= 0) return false;
  unsigned long long kib;
  *total_bytes = (size_t)page * (size_t)pages;
  if (available_kib(&kib)) {
    *free_bytes = (size_t)kib * 1024;
    return true;
  }
#ifdef _SC_AVPHYS_PAGES
  long unused = sysconf(_SC_AVPHYS_PAGES);
  *free_bytes = unused > 0 ? (size_t)page * (size_t)unused : 0;
#else
  *free_bytes = 0;
#endif
  return true;
}

bool bk_system_memory(size_t *free_bytes, size_t *total_bytes) {
  if (!machine_memory(free_bytes, total_bytes)) return false;
  bk_cgroup_memory("", free_bytes, total_bytes);
  return true;
}
