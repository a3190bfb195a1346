/* Kernels: built from source for a device, with their constants as options; what the driver made
 * is kept on disk (backends/gpu/cache.h). A kept program that the driver refuses, or that lacks
 * the kernel, is built from source again. */
#include <stdio.h>
#include <string.h>

#include "backends/opencl/opencl.h"

#include "opencl_sources.h" /* made from backends/gpu/kernels: bk_cl_prelude, bk_cl_files[] */

static const char *source_of(const char *file) {
  for (size_t i = 0; i < BK_COUNT(bk_cl_files); i++)
    if (strcmp(bk_cl_files[i].file, file) == 0) return bk_cl_files[i].text;
  return NULL;
}

static void write_options(const bk_gpu_kernel *kernel, const int32_t *consts, char *text,
                          size_t size) {
  size_t used = (size_t)snprintf(text, size, "-DKERNEL_%s", kernel->name);
  for (int i = 0; i < kernel->n_consts && used < size; i++)
    used +=
        (size_t)snprintf(text + used, size - used, " -D%s=%d", kernel->consts[i], (int)consts[i]);
}

/* ---- the cache ---- */

static void platform_text(const bk_cl_device *d, cl_platform_info what, char *text, size_t size) {
  char whole[1024] = "";
  if (d->cl->GetPlatformInfo(d->platform, what, sizeof whole - 1, whole, NULL) != CL_SUCCESS)
    whole[0] = '\0';
  snprintf(text, size, "%.*s", (int)size - 1, whole);
}

/* All that a program depends on; bk_free. */
static char *make_key(bk_cl_device *d, const char *source, const char *options) {
  char platform[256], version[256], vendor[128], device[256], device_version[256], driver[256];
  platform_text(d, CL_PLATFORM_NAME, platform, sizeof platform);
  platform_text(d, CL_PLATFORM_VERSION, version, sizeof version);
  bk_cl_device_text(d->cl, d->id, CL_DEVICE_VENDOR, vendor, sizeof vendor);
  bk_cl_device_text(d->cl, d->id, CL_DEVICE_NAME, device, sizeof device);
  bk_cl_device_text(d->cl, d->id, CL_DEVICE_VERSION, device_version, sizeof device_version);
  bk_cl_device_text(d->cl, d->id, CL_DRIVER_VERSION, driver, sizeof driver);
  uint64_t hashes[2] = {bk_hash64(bk_cl_prelude, sizeof bk_cl_prelude - 1),
                        bk_hash64(source, strlen(source))};
  return bk_format(d->gpu.base.ctx, "opencl\n%s\n%s\n%s\n%s\n%s\n%s\n%s\n%016llx%016llx\n",
                   platform, version, vendor, device, device_version, driver, options,
                   (unsigned long long)hashes[0], (unsigned long long)hashes[1]);
}

static cl_int build(bk_cl_device *d, cl_program program, const char *options) {
  return d->cl->BuildProgram(program, 1, &d->id, options, NULL, NULL);
}

/* NULL: nothing is kept that serves. */
static cl_program read_program(bk_cl_device *d, const bk_gpu_kernel *kernel, const char *key,
                               const char *options) {
  char *data;
  size_t bytes;
  cl_int error, state;
  if (!key || !bk_gpu_kept_read(&d->gpu.cache, kernel->name, key, &data, &bytes)) return NULL;
  const unsigned char *binary = (const unsigned char *)data;
  cl_program program =
      bytes ? d->cl->CreateProgramWithBinary(d->context, 1, &d->id, &bytes, &binary, &state, &error)
            : NULL;
  bk_free(d->gpu.base.ctx, data);
  if (!program) return NULL;
  if (error == CL_SUCCESS && state == CL_SUCCESS && build(d, program, options) == CL_SUCCESS)
    return program;
  bk_debug(d->gpu.base.ctx, "opencl:%d: the driver refuses the kept program of %s: built anew",
           d->gpu.base.index, kernel->name);
  (void)d->cl->ReleaseProgram(program);
  return NULL;
}

/* A program that the driver does not hand out is not kept. */
static void keep_program(bk_cl_device *d, const bk_gpu_kernel *kernel, const char *key,
                         cl_program program) {
  size_t bytes = 0;
  if (!key || !d->gpu.cache.folder) return;
  if (d->cl->GetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof bytes, &bytes, NULL) !=
      CL_SUCCESS)
    return;
  if (!bytes || bytes > BK_GPU_CACHE_MAX_BYTES) return;
  unsigned char *binary = bk_alloc(d->gpu.base.ctx, bytes);
  if (!binary) return;
  if (d->cl->GetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof binary, &binary, NULL) ==
      CL_SUCCESS)
    bk_gpu_kept_write(&d->gpu.cache, kernel->name, key, binary, bytes);
  bk_free(d->gpu.base.ctx, binary);
}

/* ---- building ---- */

static bk_status fail_build(bk_cl_device *d, cl_program program, const bk_gpu_kernel *kernel,
                            const char *options, cl_int error) {
  bk_context *ctx = d->gpu.base.ctx;
  size_t bytes = 0;
  char *log = NULL;
  (void)d->cl->GetProgramBuildInfo(program, d->id, CL_PROGRAM_BUILD_LOG, 0, NULL, &bytes);
  if (bytes) log = bk_alloc(ctx, bytes + 1);
  if (log) (void)d->cl->GetProgramBuildInfo(program, d->id, CL_PROGRAM_BUILD_LOG, bytes, log, NULL);
  bk_status status =
      bk_fail(ctx, BK_ERR_DEVICE, "opencl:%d: kernel %s (%s, %s) does not compile: %s (%d)\n%s",
              d->gpu.base.index, kernel->name, kernel->file, options, bk_cl_error_name(error),
              (int)error, log ? log : "");
  bk_free(ctx, log);
  return status;
}

static bk_status build_source(bk_cl_device *d, const bk_gpu_kernel *kernel, const char *source,
                              const char *options, cl_program *out) {
  const char *text[] = {bk_cl_prelude, source};
  cl_int error;
  cl_program program = d->cl->CreateProgramWithSource(d->context, 2, text, NULL, &error);
  if (error != CL_SUCCESS) return bk_cl_fail(d->gpu.base.ctx, error, kernel->name);
  error = build(d, program, options);
  bk_status status = error == CL_SUCCESS ? BK_OK : fail_build(d, program, kernel, options, error);
  if (status == BK_OK) *out = program;
  else (void)d->cl->ReleaseProgram(program);
  return status;
}

/* A device may run a kernel only in smaller groups than it promises for the simplest kernel. */
static bk_status check_kernel(bk_cl_device *d, const bk_cl_pipeline *p, const bk_gpu_kernel *kernel,
                              int32_t group) {
  size_t most = 0;
  cl_ulong local = 0;
  cl_int error = d->cl->GetKernelWorkGroupInfo(p->kernel, d->id, CL_KERNEL_WORK_GROUP_SIZE,
                                               sizeof most, &most, NULL);
  if (error == CL_SUCCESS)
    error = d->cl->GetKernelWorkGroupInfo(p->kernel, d->id, CL_KERNEL_LOCAL_MEM_SIZE, sizeof local,
                                          &local, NULL);
  if (error != CL_SUCCESS) return BK_OK; /* the launch will tell */
  if (local > d->gpu.local_bytes)
    return bk_fail(d->gpu.base.ctx, BK_ERR_UNSUPPORTED,
                   "opencl:%d: kernel %s needs %llu bytes of local memory, the device has %zu",
                   d->gpu.base.index, kernel->name, (unsigned long long)local, d->gpu.local_bytes);
  if ((size_t)group <= most) return BK_OK;
  return bk_fail(d->gpu.base.ctx, BK_ERR_UNSUPPORTED,
                 "opencl:%d: the device runs kernel %s in groups of at most %zu, not %d; "
                 "BIRKHOFF_OPENCL_MAX_GROUP makes groups smaller",
                 d->gpu.base.index, kernel->name, most, (int)group);
}

static bk_status make(bk_cl_device *d, const bk_gpu_kernel *kernel, const char *key,
                      const char *options, bk_cl_pipeline *p) {
  bk_context *ctx = d->gpu.base.ctx;
  const char *source = source_of(kernel->file);
  cl_int error = CL_SUCCESS;
  p->program = read_program(d, kernel, key, options);
  if (p->program) p->kernel = d->cl->CreateKernel(p->program, kernel->name, &error);
  if (p->kernel) return BK_OK;
  if (p->program) (void)d->cl->ReleaseProgram(p->program);
  p->program = NULL;
  BK_TRY(build_source(d, kernel, source, options, &p->program));
  keep_program(d, kernel, key, p->program);
  p->kernel = d->cl->CreateKernel(p->program, kernel->name, &error);
  return p->kernel ? BK_OK : bk_cl_fail(ctx, error, kernel->name);
}

bk_status bk_cl_build(bk_device *device, const bk_gpu_kernel *kernel, const int32_t *consts,
                      bk_gpu_pipeline **pipeline) {
  bk_cl_device *d = bk_cl_of(device);
  char options[512];
  bk_cl_pipeline *made = bk_alloc(device->ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  write_options(kernel, consts, options, sizeof options);
  char *key = make_key(d, source_of(kernel->file), options);
  bk_status status = make(d, kernel, key, options, made);
  bk_free(device->ctx, key);
  if (status == BK_OK) status = check_kernel(d, made, kernel, consts[0]);
  if (status == BK_OK) *pipeline = &made->base;
  else bk_cl_pipeline_free(device, &made->base);
  return status;
}

void bk_cl_pipeline_free(bk_device *device, bk_gpu_pipeline *pipeline) {
  bk_cl_device *d = bk_cl_of(device);
  bk_cl_pipeline *p = (bk_cl_pipeline *)pipeline;
  if (p->kernel) (void)d->cl->ReleaseKernel(p->kernel);
  if (p->program) (void)d->cl->ReleaseProgram(p->program);
  bk_free(device->ctx, p);
}
