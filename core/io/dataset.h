/* Token data: what users need is installed, in birkhoff/data.h. */
#ifndef BK_DATASET_H
#define BK_DATASET_H

#include <birkhoff/data.h>

#include "io/config.h"

/* By its name: a stream of tokens (.bin, in capital letters too), not a text. */
bool bk_path_is_bin(const char *path);
/* Tokens of .bin files that BK_SPLIT_TRAIN has left to validation. */
int64_t bk_dataset_kept_back(const bk_dataset *ds);

#endif
