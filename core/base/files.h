/* Files and folders by way of a context's file access (bk_context_fs). Every failure is logged with
 * the path and the system's words. The command compiles files.c too: it needs nothing of the
 * library but the installed functions. */
#ifndef BK_FILES_H
#define BK_FILES_H

#include "base/macros.h"

/* Opens a regular file for reading; ctx->fs closes it. A folder: BK_ERR_IO. A pipe, a terminal
 * or a device, which has no size and cannot be read from any place: BK_ERR_DATA. */
bk_status bk_file_open(bk_context *ctx, const char *path, bk_file **file);
/* NUL appended; bk_free */
BK_MODULE_API bk_status bk_file_read_all(bk_context *ctx, const char *path, size_t max_bytes,
                                         char **data, size_t *bytes);
/* Writes PATH.tmp, syncs, renames to PATH, syncs the folder. */
bk_status bk_file_write_atomic(bk_context *ctx, const char *path, const void *data, size_t bytes);
BK_MODULE_API bk_status bk_mkdirs(bk_context *ctx,
                                  const char *path);         /* what is made survives a crash */
bk_status bk_remove_tree(bk_context *ctx, const char *path); /* missing is fine */
/* the same of FOLDER/NAME */
BK_MODULE_API bk_status bk_remove_member(bk_context *ctx, const char *folder, const char *name);
/* no . or ..; bk_names_free */
BK_MODULE_API bk_status bk_folder_names(bk_context *ctx, const char *path, char ***names,
                                        size_t *count);
/* The same, where a folder that cannot be listed is no failure: *error is then below 0, an errno,
 * and the names are those that were read before. */
bk_status bk_folder_list(bk_context *ctx, const char *path, char ***names, size_t *count,
                         int *error);
BK_MODULE_API void bk_names_free(bk_context *ctx, char **names, size_t count);
bk_status bk_file_size(bk_context *ctx, const char *path, uint64_t *bytes);
/* *kind: 0 a file, 1 a folder, 2 something else, -1 nothing is there; BK_ERR_IO where the system
 * cannot say. Where absence leads to other actions than an error does, this is to be asked and
 * not the two below, which take "cannot say" for "no". */
bk_status bk_path_kind(bk_context *ctx, const char *path, int *kind);
BK_MODULE_API bool bk_path_exists(bk_context *ctx, const char *path);
bool bk_path_is_dir(bk_context *ctx, const char *path);
BK_MODULE_API char *bk_path_join(bk_context *ctx, const char *folder,
                                 const char *name); /* bk_free */

#endif
