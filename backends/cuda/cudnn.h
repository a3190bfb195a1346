/* Attention through cuDNN's graph API, found at run time. The graphs: cudnn_graph.h; the rows of
 * the kernel table: kernels/attention.h.
 *
 * Served by cuDNN 9.18 or newer: bf16 with a packed lse, no past, BK_CUDNN_MIN_TOKENS tokens or
 * more, Dk and Dv multiples of 8, 16-byte rows, whatever of that cuDNN has a deterministic
 * engine for; the backward up to Hopper only, since on Blackwell the graph that we build is not
 * the one that NVIDIA calls deterministic there. All else goes to our own kernels, as everything
 * does where the library is missing, the module was built without its header (9.8 or newer), or
 * BIRKHOFF_CUDA_CUDNN=0 is set. A plan that fails when it runs is given up with a warning: our
 * own kernel does that launch and all later ones.
 *
 * Memory: cuDNN's deterministic backward keeps ds, [B,H,T,T] in bf16, in the workspace. Where ds
 * takes more than BK_CUDNN_MATRIX bytes the backward goes in pieces (cudnn_pieces.h), one after
 * another on the stream in one workspace: at T = 4096 8 heads at a time. Our own backward, which
 * has no such matrix, serves where one head takes more (T > 11520), and where the lse of a piece
 * would not begin at a multiple of 16 bytes. A piece that fails gives the whole backward to our
 * own kernel, which overwrites what the pieces before it wrote.
 *
 * Finding a plan takes up to a second or two, so a device keeps what it found (and that it found
 * none) by shapes, strides and scale: the layers of a model share one. The library itself is
 * opened when the first attention asks for it. */
#ifndef BK_CUDA_CUDNN_H
#define BK_CUDA_CUDNN_H

#include "backends/cuda/cuda.h"

/* at run time: NVIDIA's frontend works around wrong backwards (T no multiple of 128) up to 9.15;
 * plans were made with 9.19 and 9.26 */
#define BK_CUDNN_VERSION 91800
#define BK_CUDNN_MIN_TOKENS 256
#ifdef BK_CUDA_ON_HOST
/* small shapes go in pieces too: T = 256 four heads at a time */
#define BK_CUDNN_MATRIX ((size_t)600 << 10)
#else
#define BK_CUDNN_MATRIX ((size_t)256 << 20)
#endif
/* an engine keeps some little things beside it */
#define BK_CUDNN_WORKSPACE (BK_CUDNN_MATRIX + ((size_t)1 << 20))

/* Compiled in: HAVE_CUDNN_H is configure's; on the host a stand-in is in the place of
 * cudnn_graph.c. */
#if defined(HAVE_CUDNN_H) || defined(BK_CUDA_ON_HOST)
#define BK_CUDNN_HERE 1
#endif

/* Leaves d->cudnn NULL where it is switched off or was not compiled in. */
bk_status bk_cudnn_open(bk_cuda_device *d);
void bk_cudnn_close(bk_cuda_device *d);

#endif
