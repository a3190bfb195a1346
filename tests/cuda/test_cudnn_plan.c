/* The attention graphs of backends/cuda/cudnn_graph.c against the real cuDNN, without a GPU: a
 * plan is asked for an H100 and an A100 that are described in JSON. Skipped where the library is
 * not found.
 *
 * Without a device the last step of making a plan, loading the code that was compiled for it,
 * cannot be taken: a driver that is only the toolkit's stub answers with an error of its own. So
 * a graph passes when cuDNN knows it, has a deterministic engine for it and has compiled that
 * engine's code; one that it does not know is refused before that. Nothing is run. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "backends/cuda/cudnn.h"

#ifndef BK_CUDNN_HERE

int main(void) {
  puts("SKIP: built without cuDNN's header");
  return 77;
}

#else

#include "backends/cuda/cudnn_graph.h"
#include "backends/cuda/cudnn_pieces.h"

/* What cuDNN reads of a device. %d: processors, bytes of shared memory that a block can have,
 * 100 times the capability. */
static const char device_text[] =
    "{\"regsPerBlock\":65536,\"multiProcessorCount\":%d,\"warpSize\":32,"
    "\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":%d,"
    "\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":32,"
    "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,"
    "\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],\"pciDeviceId\":0,"
    "\"isTccDriver\":0,\"supportCoopLaunch\":1,"
    "\"totalGlobalMem\":85899345920,\"smClockRateKHz\":1980000,\"memClockRateKHz\":2619000,"
    "\"l2CacheSize\":52428800,\"cudaDeviceId\":0,"
    "\"deviceVer\":%d,\"driverVer\":13000,\"deviceName\":\"described\"}";

static bk_cudnn_api api;
static int passed, failed;

static void report(bool good, const char *what, const char *said) {
  if (good) passed++;
  else failed++;
  if (!good) printf("FAIL: %s: %s\n", what, said);
}

static cudnnBackendDescriptor_t described(int processors, int shared, int version) {
  char text[1024];
  cudnnBackendDescriptor_t d = NULL;
  const int length = snprintf(text, sizeof text, device_text, processors, shared, version);
  if (api.BackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &d) != CUDNN_STATUS_SUCCESS)
    return NULL;
  if (api.BackendSetAttribute(d, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                              length + 1, text) == CUDNN_STATUS_SUCCESS &&
      api.BackendFinalize(d) == CUDNN_STATUS_SUCCESS)
    return d;
  (void)api.BackendDestroyDescriptor(d);
  return NULL;
}

typedef struct sizes {
  int64_t b, t, h, dk, dv;
} sizes;

static bk_attention_bwd_args args_of(sizes s) {
  const bk_tensor keys = bk_tensor_make(BK_BF16, 4, (int64_t[]){s.b, s.t, s.h, s.dk}),
                  values = bk_tensor_make(BK_BF16, 4, (int64_t[]){s.b, s.t, s.h, s.dv});
  return (bk_attention_bwd_args){.q = keys,
                                 .k = keys,
                                 .v = values,
                                 .o = values,
                                 .dout = values,
                                 .dq = keys,
                                 .dk = keys,
                                 .dv = values,
                                 .lse = bk_tensor_make(BK_F32, 3, (int64_t[]){s.b, s.h, s.t}),
                                 .scale = 0.125};
}

/* Whether an engine took the graph: the plan is there, or only its code could not be loaded. */
static bool taken(cudnnStatus_t status) {
  return status == CUDNN_STATUS_SUCCESS || status == CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER;
}

static cudnnStatus_t plan_of(cudnnBackendDescriptor_t device, const bk_attention_bwd_args *b,
                             bool backward, size_t limit, size_t *bytes) {
  const bk_cudnn_target target = {.properties = device};
  const bk_attention_args f = {
      .q = b->q, .k = b->k, .v = b->v, .o = b->o, .lse = b->lse, .scale = b->scale};
  bk_cudnn_plan plan;
  cudnnStatus_t status = backward ? bk_cudnn_plan_backward(&api, target, b, limit, &plan)
                                  : bk_cudnn_plan_forward(&api, target, &f, limit, &plan);
  *bytes = plan.workspace;
  if (status == CUDNN_STATUS_SUCCESS) bk_cudnn_plan_release(&plan);
  return status;
}

static void expect(cudnnBackendDescriptor_t device, const char *name, sizes s, bool backward,
                   bool wanted) {
  const bk_attention_bwd_args b = args_of(s);
  char what[160];
  size_t bytes;
  cudnnStatus_t status = plan_of(device, &b, backward, BK_CUDNN_WORKSPACE, &bytes);
  snprintf(what, sizeof what,
           "%s, %s of %lld x %lld tokens, %lld heads of %lld/%lld: %s was expected", name,
           backward ? "backward" : "forward", (long long)s.b, (long long)s.t, (long long)s.h,
           (long long)s.dk, (long long)s.dv, wanted ? "a plan" : "a refusal");
  report(taken(status) == wanted, what, api.GetErrorString(status));
  if (taken(status))
    printf("%s, %s: %zu bytes of workspace\n", name, backward ? "backward" : "forward", bytes);
}

/* The workspace that cuDNN names for a backward of n heads: ds, and not more than the cut into
 * pieces counts with. */
static void expect_workspace(const char *what, const bk_attention_bwd_args *piece, size_t bytes) {
  const bk_tensor *q = &piece->q;
  const size_t side = (size_t)(q->shape[1] + BK_CUDNN_TILE - 1) / BK_CUDNN_TILE * BK_CUDNN_TILE,
               heads = (size_t)(q->shape[0] * q->shape[2]);
  const size_t least = heads * (size_t)(q->shape[1] * q->shape[1]) * 2,
               most = heads * side * side * 2 + BK_CUDNN_WORKSPACE - BK_CUDNN_MATRIX;
  char said[100];
  snprintf(said, sizeof said, "%zu bytes of workspace, not %zu to %zu", bytes, least, most);
  report(bytes >= least && bytes <= most, what, said);
}

/* As many pieces as wanted; plans for the first and the last, whose shapes are those of all. */
static void expect_pieces(cudnnBackendDescriptor_t device, const char *name, sizes s,
                          int64_t wanted) {
  const bk_attention_bwd_args whole = args_of(s);
  const bk_cudnn_cut cut = bk_cudnn_cut_of(&whole, BK_CUDNN_MATRIX);
  const int64_t count = bk_cudnn_count(cut);
  char what[160], said[60];
  snprintf(what, sizeof what, "%s, backward in pieces, %lld x %lld tokens, %lld heads of %lld/%lld",
           name, (long long)s.b, (long long)s.t, (long long)s.h, (long long)s.dk, (long long)s.dv);
  snprintf(said, sizeof said, "%lld pieces, not %lld", (long long)count, (long long)wanted);
  report(count == wanted, what, said);
  for (int64_t i = 0; i<count; i += count> 1 ? count - 1 : 1) {
    const bk_attention_bwd_args piece = bk_cudnn_piece(&whole, cut, i);
    size_t bytes;
    cudnnStatus_t status = plan_of(device, &piece, true, BK_CUDNN_WORKSPACE, &bytes);
    report(taken(status), what, api.GetErrorString(status));
    if (taken(status)) expect_workspace(what, &piece, bytes);
  }
}

static void refuse_what_does_not_fit(cudnnBackendDescriptor_t device) {
  bk_attention_bwd_args b = args_of((sizes){1, 512, 2, 64, 64});
  size_t bytes;
  b.v.shape[1] /= 2;
  report(!taken(plan_of(device, &b, false, BK_CUDNN_WORKSPACE, &bytes)),
         "forward with too few values", "it was taken");
  report(!taken(plan_of(device, &b, true, BK_CUDNN_WORKSPACE, &bytes)),
         "backward with too few values", "it was taken");
  b = args_of((sizes){1, 512, 2, 64, 64});
  report(!taken(plan_of(device, &b, true, 1000, &bytes)), "backward within 1000 bytes",
         "it was taken");
}

static void test_device(const char *name, int processors, int shared, int version, bool wide) {
  cudnnBackendDescriptor_t device = described(processors, shared, version);
  report(device != NULL, name, "its description is not understood");
  if (!device) return;
  for (int backward = 0; backward < 2; backward++) {
    expect(device, name, (sizes){2, 1024, 8, 64, 64}, backward, true);
    expect(device, name, (sizes){1, 777, 3, 40, 24}, backward, true);
    expect(device, name, (sizes){1, 512, 4, 192, 128}, backward, wide || !backward);
  }
  expect(device, name, (sizes){1, 512, 2, 2048, 2048}, true, false);
  expect_pieces(device, name, (sizes){1, 4096, 32, 128, 128}, 4); /* 8 heads each */
  if (wide) {
    expect_pieces(device, name, (sizes){2, 4096, 32, 192, 128}, 8);
    expect_pieces(device, name, (sizes){5, 1800, 12, 64, 64}, 2); /* 2 and 3 sequences */
    /* 6 and 7 heads; whole tiles of 4096 */
    expect_pieces(device, name, (sizes){1, 4000, 20, 96, 64}, 3);
    expect_pieces(device, name, (sizes){1, 11520, 2, 64, 64}, 2); /* the longest sequence */
  }
  refuse_what_does_not_fit(device);
  (void)api.BackendDestroyDescriptor(device);
}

/* Names that are loaded already are found without a search: here the toolkit's, where the loader
 * knows of no other. */
static void offer(const char *name, const char *path) {
  if (!dlopen(name, RTLD_NOW | RTLD_GLOBAL)) (void)dlopen(path, RTLD_NOW | RTLD_GLOBAL);
}

int main(void) {
  const char *opened = NULL;
  offer("libcuda.so.1", BK_CUDA_ROOT "/lib64/stubs/libcuda.so");
  offer("libnvrtc.so.13", BK_CUDA_ROOT "/lib64/libnvrtc.so");
  offer("libcudnn_graph.so.9", BK_CUDA_ROOT "/lib64/libcudnn_graph.so.9");
  const char *missing = bk_cudnn_api_find(&api, &opened);
  if (missing || api.GetVersion() < BK_CUDNN_VERSION || !dlopen("libcuda.so.1", RTLD_NOW)) {
    printf("SKIP: %s\n", missing ? missing
                         : api.GetVersion() < BK_CUDNN_VERSION
                             ? "cuDNN is older than 9.18"
                             : "not even a stub of libcuda is found");
    return 77;
  }
  printf("%s, version %zu\n", opened, api.GetVersion());
  test_device("H100", 132, 232448, 900, true);
  test_device("A100", 108, 166912, 800, false);
  printf("%d passed, %d failed, 0 skipped\n", passed, failed);
  return failed > 0 || passed == 0;
}

#endif
