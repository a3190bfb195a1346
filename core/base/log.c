/* Messages to the context's sink. A message is made in a fixed buffer on the stack, so that "out
 * of memory" can be said without any memory; a message that does not fit ends in "...". Nothing is
 * printed here: a context without a sink is silent, and so is a call without a context (NULL). */
#include "base/base.h"

#include <stdio.h>
#include <string.h>

#define MESSAGE_MAX 2048

static void emit(bk_context *ctx, bk_log_level level, const char *format, va_list args) {
  if (!ctx || !ctx->log || level > ctx->log_level) return;
  char message[MESSAGE_MAX];
  int length = vsnprintf(message, sizeof message, format, args);
  if (length < 0) snprintf(message, sizeof message, "(message could not be formatted) %s", format);
  if (length >= (int)sizeof message) memcpy(message + sizeof message - 4, "...", 4);
  ctx->log(ctx->log_user, level, message);
}

void bk_log(bk_context *ctx, bk_log_level level, const char *format, ...) {
  va_list args;
  va_start(args, format);
  emit(ctx, level, format, args);
  va_end(args);
}

bk_status bk_fail(bk_context *ctx, bk_status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  emit(ctx, BK_LOG_ERROR, format, args);
  va_end(args);
  return status;
}

bk_status bk_log_level_parse(const char *text, bk_log_level *level) {
  static const char *const names[] = {"error", "warn", "info", "debug", "trace"};
  for (size_t i = 0; text && i < BK_COUNT(names); i++) {
    if (strcmp(text, names[i]) != 0) continue;
    *level = (bk_log_level)i;
    return BK_OK;
  }
  return BK_ERR_ARGUMENT;
}
