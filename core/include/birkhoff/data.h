/* Token data: UTF-8 text as byte tokens 0..255 with 256 after each file, or .bin streams of
 * uint16 or uint32 (little-endian, without a header). The last 10 % of each file,
 * floor(bytes/10) of a text and floor(tokens/10) of a .bin, is its validation part; a .bin of
 * fewer than 20 tokens has none. What a file is, is also looked for in a sample of its contents:
 * archives, arrays, weights, pointers of Git LFS and the like, what is plainly not text, text
 * named .bin, and streams of another width than they are read in are refused with what would be
 * right (BK_ERR_DATA). Where the caller says data_dtype uint16, a stream counts as uint32 only
 * if every second number is 0. Text that is not UTF-8 is taken as the bytes that it is. */
#ifndef BIRKHOFF_DATA_H
#define BIRKHOFF_DATA_H

#include <birkhoff/config.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BK_TOKEN_END 256 /* ends each text file; generation stops at it */

typedef enum bk_split { BK_SPLIT_TRAIN, BK_SPLIT_VAL, BK_SPLIT_ALL } bk_split;
typedef struct bk_dataset bk_dataset;

typedef struct bk_dataset_options {
  int64_t vocab_size; /* every token is checked against it: BK_ERR_DATA names file and position */
  int data_dtype;     /* as in bk_train_config; 0: uint16 if vocab_size <= 65536 else uint32 */
  bk_split split;
  /* a .bin file has no validation part, whatever its size: all of it is training data (recipe
   * key bin_validation = false) */
  bool whole_bin;
} bk_dataset_options;

/* The files' tokens of the split, one after the other. Text files: token 256 after the file's
 * last byte (in the split that has the file's end: val or all; with val data given separately
 * the caller asks for ALL). Empty files, an empty result and what is no regular file:
 * BK_ERR_DATA. */
BK_API bk_status bk_dataset_open(bk_context *ctx, const char *const *paths, int n_paths,
                                 const bk_dataset_options *options, bk_dataset **ds);
/* `count` tokens that lie in memory, each an unsigned integer of token_bytes (1, 2 or 4) in this
 * machine's byte order. They are read in place: they stay the caller's, unchanged, until the
 * dataset is closed. A token not below vocab_size: BK_ERR_DATA names its position. */
BK_API bk_status bk_dataset_from_tokens(bk_context *ctx, const void *tokens, int64_t count,
                                        int token_bytes, int64_t vocab_size, bk_dataset **ds);
BK_API void bk_dataset_close(bk_dataset *ds); /* NULL is allowed */
BK_API int64_t bk_dataset_tokens(const bk_dataset *ds);
/* bytes of text behind the tokens; -1 if a .bin is among them, or from memory */
BK_API int64_t bk_dataset_bytes(const bk_dataset *ds);
/* Whether a file is read as a stream of tokens and not as text: its name ends in .bin, in small or
 * capital letters. */
BK_API bool bk_path_is_bin(const char *path);
/* Tokens of .bin files that BK_SPLIT_TRAIN has left to validation. */
BK_API int64_t bk_dataset_kept_back(const bk_dataset *ds);
BK_API uint64_t bk_dataset_hash(const bk_dataset *ds);
BK_API int64_t bk_dataset_at(const bk_dataset *ds, int64_t i); /* token i */

/* Training order: a pure function of (seed, sequence number), so that the position is one
 * integer. Windows of seq_len inputs + the next token; each epoch visits every window once, in a
 * pseudo-random order, cut at a pseudo-random offset of the epoch. Sequence number s (from 0):
 * ids [seq_len], targets [seq_len] (ids shifted by one). Data shorter than seq_len + 1:
 * bk_dataset_check_seq_len gives BK_ERR_DATA with both lengths. */
BK_API bk_status bk_dataset_check_seq_len(bk_context *ctx, const bk_dataset *ds, int64_t seq_len);
BK_API void bk_dataset_train_sequence(const bk_dataset *ds, uint64_t seed, int64_t seq_len,
                                      int64_t s, int32_t *ids, int32_t *targets);

/* Evaluation: window i of seq_len inputs from i*seq_len, the last one shorter; every token but
 * the first is predicted once. Fills seq_len entries; past the end ids are 0 and targets -100.
 * Returns the number of kept targets. */
BK_API int64_t bk_dataset_eval_windows(const bk_dataset *ds, int64_t seq_len);
BK_API int64_t bk_dataset_eval_window(const bk_dataset *ds, int64_t seq_len, int64_t i,
                                      int32_t *ids, int32_t *targets);

/* ---- tokens for one pass ---- */

/* Tokens for one pass, as `birkhoff forward --tokens` takes them: a safetensors file with
 * input_ids [B,T] (I32 or I64) and, optionally, targets [B,T] (-100 = ignored; default:
 * targets[b,t] = input_ids[b,t+1], and -100 at the last t). */
typedef struct bk_tokens {
  int64_t batch, seq_len, kept; /* B, T, targets that count */
  int32_t *ids, *targets;       /* [B,T] */
} bk_tokens;

/* Errors are BK_ERR_DATA, naming file, tensor and place: a wrong shape or dtype, sequences longer
 * than `longest`, a token that is not below vocab_size, no kept target at all. */
BK_API bk_status bk_tokens_read(bk_context *ctx, const char *path, int64_t vocab_size,
                                int64_t longest, bk_tokens *tokens);
/* Frees what bk_tokens_read made; safe on a zeroed struct. */
BK_API void bk_tokens_fini(bk_context *ctx, bk_tokens *tokens);

#ifdef __cplusplus
}
#endif
#endif
