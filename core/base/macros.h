/* What every source file may use, of the library and of the command. */
#ifndef BK_MACROS_H
#define BK_MACROS_H

#include <birkhoff/context.h>

#define BK_UNUSED __attribute__((unused))
#define BK_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define BK_ALIGN_UP(x, a) (((x) + (a)-1) / (a) * (a))

/* What loadable backends may use beside the installed API: the functions with this mark, and no
 * others, are exported for them. They follow the modules' ABI number (BK_BACKEND_ABI), not that of
 * the library; a test keeps their number small. */
#define BK_MODULE_API BK_API

/* Messages: lower case, the exact cause, values and what would be right; no full stop. Errors:
 * bk_fail. */
#define bk_warn(ctx, ...) bk_log(ctx, BK_LOG_WARN, __VA_ARGS__)
#define bk_info(ctx, ...) bk_log(ctx, BK_LOG_INFO, __VA_ARGS__)
#define bk_debug(ctx, ...) bk_log(ctx, BK_LOG_DEBUG, __VA_ARGS__)

#endif
