/* The two halves of `birkhoff compare`. Each prints its own result (text or JSON). */
#ifndef BK_COMPARE_H
#define BK_COMPARE_H

#include "tools/cli.h"

/* metrics.jsonl files */
bk_status compare_metrics(cli_session *s, const char *path_a, const char *path_b);
/* step folders, or safetensors files */
bk_status compare_checkpoints(cli_session *s, const char *path_a, const char *path_b);

#endif
