/* Kernels: built from source for a device, with their constants as options. */
#include <stdio.h>
#include <string.h>

#include "backends/opencl/opencl.h"

#include "opencl_sources.h" /* made from backends/gpu/kernels: bk_cl_prelude, bk_cl_files[] */

static const char *source_of(const char *file) {
  for (size_t i = 0; i < BK_COUNT(bk_cl_files); i++)
    if (strcmp(bk_cl_files[i].file, file) == 0) return bk_cl_files[i].text;
  return NULL;
}

static void write_options(const bk_gpu_kernel *kernel, const int32_t *consts, char *text, size_t size) {
  size_t used = (size_t)snprintf(text, size, "-DKERNEL_%s", kernel->name);
  for (int i = 0; i < kernel->n_consts && used < size; i++) used += (size_t)snprintf(text + used, size - used, " -D%s=%d", kernel->consts[i], (int)consts[i]);
}

static bk_status fail_build(bk_cl_device *d, cl_program program, const bk_gpu_kernel *kernel, const char *options, cl_int error) {
  bk_context *ctx = d->gpu.base.ctx;
  size_t bytes = 0;
  char *log = NULL;
  (void)d->cl->GetProgramBuildInfo(program, d->id, CL_PROGRAM_BUILD_LOG, 0, NULL, &bytes);
  if (bytes) log = bk_alloc(ctx, bytes + 1);
  if (log) (void)d->cl->GetProgramBuildInfo(program, d->id, CL_PROGRAM_BUILD_LOG, bytes, log, NULL);
  bk_status status = bk_fail(ctx, BK_ERR_DEVICE, "opencl: kernel %s (%s, %s) does not compile: %s\n%s", kernel->name, kernel->file, options,
                             bk_cl_error_name(error), log ? log : "");
  bk_free(ctx, log);
  return status;
}

static bk_status build_source(bk_cl_device *d, const bk_gpu_kernel *kernel, const char *options, cl_program *out) {
  const char *text[] = {bk_cl_prelude, source_of(kernel->file)};
  cl_int error;
  cl_program program = d->cl->CreateProgramWithSource(d->context, 2, text, NULL, &error);
  if (error != CL_SUCCESS) return bk_cl_fail(d->gpu.base.ctx, error, kernel->name);
  error = d->cl->BuildProgram(program, 1, &d->id, options, NULL, NULL);
  bk_status status = error == CL_SUCCESS ? BK_OK : fail_build(d, program, kernel, options, error);
  if (status == BK_OK) *out = program;
  else (void)d->cl->ReleaseProgram(program);
  return status;
}

bk_status bk_cl_build(bk_device *device, const bk_gpu_kernel *kernel, const int32_t *consts, bk_gpu_pipeline **pipeline) {
  bk_cl_device *d = bk_cl_of(device);
  char options[512];
  bk_cl_pipeline *made = bk_alloc(device->ctx, sizeof *made);
  if (!made) return BK_ERR_MEMORY;
  write_options(kernel, consts, options, sizeof options);
  bk_status status = build_source(d, kernel, options, &made->program);
  cl_int error = CL_SUCCESS;
  if (status == BK_OK) made->kernel = d->cl->CreateKernel(made->program, kernel->name, &error);
  if (error != CL_SUCCESS) status = bk_cl_fail(device->ctx, error, kernel->name);
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
