/* libvulkan, found at run time: the module loads on a machine without it, and `devices` says why
 * there is none. BIRKHOFF_VULKAN_LIBRARY names another library: one that is not where the system
 * looks, or the stand-in of the tests (tests/vulkan/fake_vulkan.c). */
#include "backends/vulkan/vulkan.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* the loaded library; never closed: drivers leave threads behind */
static PFN_vkGetInstanceProcAddr get_instance_proc;

static void *open_library(const char *named) {
  if (named && named[0]) return dlopen(named, RTLD_NOW | RTLD_LOCAL);
  void *library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
  return library ? library : dlopen("libvulkan.1.dylib", RTLD_NOW | RTLD_LOCAL);
}

static bk_status load(bk_context *ctx, char *reason, size_t size) {
  if (get_instance_proc) return BK_OK;
  const char *named = bk_context_environment(ctx, "BIRKHOFF_VULKAN_LIBRARY");
  void *library = open_library(named);
  if (!library) {
    if (named && named[0])
      snprintf(reason, size, "there is no %s (BIRKHOFF_VULKAN_LIBRARY)", named);
    else snprintf(reason, size, "there is no Vulkan loader (libvulkan.so.1; Debian: libvulkan1)");
    return BK_ERR_ABSENT;
  }
  void *symbol = dlsym(library, "vkGetInstanceProcAddr");
  if (!symbol) {
    dlclose(library);
    snprintf(reason, size, "the Vulkan loader has no vkGetInstanceProcAddr");
    return BK_ERR_ABSENT;
  }
  /* ISO C has no conversion to a function pointer */
  memcpy(&get_instance_proc, &symbol, sizeof symbol);
  return BK_OK;
}

/* Looked up by name; of every kind of function pointer. */
#define GLOBAL(name) ((PFN_vk##name)get_instance_proc(NULL, "vk" #name))

static bool offers(bk_context *ctx, const char *extension) {
  uint32_t n = 0;
  PFN_vkEnumerateInstanceExtensionProperties enumerate =
      GLOBAL(EnumerateInstanceExtensionProperties);
  if (!enumerate || enumerate(NULL, &n, NULL) != VK_SUCCESS) return false;
  VkExtensionProperties *list = bk_alloc_array(ctx, n, sizeof *list);
  VkResult result = list ? enumerate(NULL, &n, list) : VK_ERROR_OUT_OF_HOST_MEMORY;
  bool found = false;
  for (uint32_t i = 0; i < n && (result == VK_SUCCESS || result == VK_INCOMPLETE); i++)
    found = found || strcmp(list[i].extensionName, extension) == 0;
  bk_free(ctx, list);
  return found;
}

/* Devices that are Vulkan on top of something else (MoltenVK) show up only when asked for. */
static void ask_for_portability(bk_context *ctx, VkInstanceCreateInfo *info) {
#ifdef VK_KHR_portability_enumeration
  static const char *const names[] = {VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME};
  if (!offers(ctx, names[0])) return;
  info->flags |= VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR;
  info->enabledExtensionCount = 1;
  info->ppEnabledExtensionNames = names;
#else
  (void)ctx, (void)info, (void)offers;
#endif
}

static bool take_functions(bk_vk_instance *in) {
#define TAKE(name)                                                    \
  in->name = (PFN_vk##name)get_instance_proc(in->handle, "vk" #name); \
  if (!in->name) return false;
  BK_VK_INSTANCE_FUNCTIONS(TAKE)
#undef TAKE
  return true;
}

bk_status bk_vk_instance_open(bk_vk_instance *in, bk_context *ctx, char *reason, size_t size) {
  uint32_t version = VK_API_VERSION_1_0;
  *in = (bk_vk_instance){0};
  BK_TRY(load(ctx, reason, size));
  PFN_vkCreateInstance create = GLOBAL(CreateInstance);
  PFN_vkEnumerateInstanceVersion ask = GLOBAL(EnumerateInstanceVersion);
  if (ask) (void)ask(&version);
  if (!create || version < VK_API_VERSION_1_2) {
    snprintf(reason, size, "the Vulkan loader is older than 1.2");
    return BK_ERR_ABSENT;
  }
  const VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                         .pApplicationName = "birkhoff",
                                         .pEngineName = "birkhoff",
                                         .apiVersion = VK_API_VERSION_1_2};
  VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                               .pApplicationInfo = &application};
  ask_for_portability(ctx, &info);
  VkResult result = create(&info, NULL, &in->handle);
  if (result != VK_SUCCESS) {
    if (result == VK_ERROR_INCOMPATIBLE_DRIVER)
      snprintf(reason, size,
               "no Vulkan driver is installed (Debian: mesa-vulkan-drivers, or your GPU's driver)");
    else
      snprintf(reason, size, "the Vulkan loader cannot start: %s (%d)", bk_vk_result_name(result),
               (int)result);
    *in = (bk_vk_instance){0};
    return BK_ERR_ABSENT;
  }
  if (take_functions(in)) return BK_OK;
  bk_vk_instance_close(in);
  snprintf(reason, size, "the Vulkan loader lacks functions of version 1.2");
  return BK_ERR_ABSENT;
}

void bk_vk_instance_close(bk_vk_instance *in) {
  if (in->handle && in->DestroyInstance) in->DestroyInstance(in->handle, NULL);
  *in = (bk_vk_instance){0};
}

bool bk_vk_device_functions(const bk_vk_instance *in, VkDevice device, bk_vk_api *vk) {
#define TAKE(name)                                                    \
  vk->name = (PFN_vk##name)in->GetDeviceProcAddr(device, "vk" #name); \
  if (!vk->name) return false;
  BK_VK_DEVICE_FUNCTIONS(TAKE)
#undef TAKE
  return true;
}
