/* Checkpoints: what users need is installed, in birkhoff/model.h. */
#ifndef BK_CHECKPOINT_H
#define BK_CHECKPOINT_H

#include "models/model.h"

/* Bytes of the host copy through which save and load move tensors, whatever their sizes. */
size_t bk_checkpoint_staging(void);

#endif
