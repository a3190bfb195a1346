/* Token data. A file is either UTF-8 text, whose bytes are the tokens 0 to 255 and which token 256
 * ends, or a stream of uint16 or uint32 tokens, little-endian and without a header, whose name ends
 * in .bin. Text that is not UTF-8 is taken as the bytes that it is.
 *
 * The last tenth of each file is its validation part: floor(bytes / 10) of a text, floor(tokens /
 * 10) of a stream. A stream of fewer than 20 tokens has none.
 *
 * Files are read where their tokens are wanted; they are not held in memory, and must not change
 * while a dataset of them is open. What reads them fails with a message that names the file where
 * one has become shorter or longer or cannot be read, or where a token is not below vocab_size.
 *
 * A sample of a file's contents must agree with its name. These are refused (BK_ERR_DATA), and the
 * message says what would be right: archives, arrays, weights, pointers of Git LFS and the like,
 * what is plainly not text, a text named .bin, and a stream of another width than it is read in.
 * Where the caller sets data_dtype to uint16, a stream is taken for uint32 only if every second
 * number is 0. */
#ifndef BIRKHOFF_DATA_H
#define BIRKHOFF_DATA_H

#include <birkhoff/config.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BK_TOKEN_END 256 /* follows each text; generation stops at it */

typedef enum bk_split { BK_SPLIT_TRAIN, BK_SPLIT_VAL, BK_SPLIT_ALL } bk_split;
typedef struct bk_dataset bk_dataset;

typedef struct bk_dataset_options {
  int64_t vocab_size; /* a token that is not below it: BK_ERR_DATA names file and position */
  int data_dtype;     /* 0: uint16 where vocab_size is at most 65536, else uint32; 1, 2: these */
  bk_split split;
  /* A .bin file has no validation part, whatever its size: all of it is training data. This is what
   * bin_validation = false in a recipe asks for. */
  bool whole_bin;
} bk_dataset_options;

/* Takes the part of each file that the split names, one file after the other. Of a part of up to
 * 16 MiB (and 256 MiB of them together) every token is checked and hashed here; of a larger one
 * blocks at fixed places are, and every token when it is read. Token 256 follows the last byte of a
 * text, in a split that has the end of the text. A caller with separate files for validation asks
 * for BK_SPLIT_ALL of both. BK_ERR_DATA for an empty file, an empty result, and what is not a
 * regular file. */
BK_API bk_status bk_dataset_open(bk_context *ctx, const char *const *paths, int n_paths,
                                 const bk_dataset_options *options, bk_dataset **ds);
/* Takes `count` tokens that lie in memory, each an unsigned integer of token_bytes (1, 2 or 4)
 * bytes in this machine's byte order. They are read in place: they stay the caller's, who leaves
 * them unchanged until the dataset is closed. BK_ERR_DATA for a token that is not below vocab_size,
 * with its position. */
BK_API bk_status bk_dataset_from_tokens(bk_context *ctx, const void *tokens, int64_t count,
                                        int token_bytes, int64_t vocab_size, bk_dataset **ds);
BK_API void bk_dataset_close(bk_dataset *ds); /* NULL is allowed */
BK_API int64_t bk_dataset_tokens(const bk_dataset *ds);
/* The bytes of text that the tokens stand for; -1 where a .bin file is among the data, and for
 * tokens from memory. */
BK_API int64_t bk_dataset_bytes(const bk_dataset *ds);
/* Whether a file is read as a stream of tokens and not as text, which is so if its name ends in
 * .bin, in small letters or capital ones. */
BK_API bool bk_path_is_bin(const char *path);
/* The number of tokens of .bin files that BK_SPLIT_TRAIN has left to validation. */
BK_API int64_t bk_dataset_kept_back(const bk_dataset *ds);
/* The hash that a trainer's state holds: of contents, lengths and order, not of names. Of a part
 * that is too large to be read whole at opening, the length and blocks at fixed places count. */
BK_API uint64_t bk_dataset_hash(const bk_dataset *ds);
/* Whether there is such a part; if so, earlier versions gave the data another hash.
 * bk_dataset_hash_whole computes that one, for which it reads all of the data. */
BK_API bool bk_dataset_sampled(const bk_dataset *ds);
BK_API bk_status bk_dataset_hash_whole(const bk_dataset *ds, uint64_t *hash);
/* What identifies each file, in the order in which they were given; the list stays the dataset's.
 * Returns their number, which is 0 for tokens from memory. */
BK_API int bk_dataset_files(const bk_dataset *ds, const bk_data_file **files);
/* Token i; -1 where it cannot be read. */
BK_API int64_t bk_dataset_at(const bk_dataset *ds, int64_t i);

/* The order of training is a pure function of the seed and the sequence number, so a position in
 * the data is one integer. A window is seq_len inputs and the token after them. Every epoch cuts
 * the data into windows from a pseudo-random offset of its own on, and visits each of them once, in
 * a pseudo-random order.
 * bk_dataset_train_sequence writes sequence number s, counted from 0: ids [seq_len], and targets
 * [seq_len], which are the ids shifted by one. bk_dataset_check_seq_len returns BK_ERR_DATA for
 * data of fewer than seq_len + 1 tokens, with both lengths. */
BK_API bk_status bk_dataset_check_seq_len(bk_context *ctx, const bk_dataset *ds, int64_t seq_len);
BK_API bk_status bk_dataset_train_sequence(const bk_dataset *ds, uint64_t seed, int64_t seq_len,
                                           int64_t s, int32_t *ids, int32_t *targets);

/* Evaluation. Window i has seq_len inputs from token i * seq_len on; the last window is shorter,
 * and every token but the first is predicted once. bk_dataset_eval_windows returns the number of
 * windows. bk_dataset_eval_window fills seq_len entries, past the end with id 0 and target -100;
 * *kept is the number of targets that count. */
BK_API int64_t bk_dataset_eval_windows(const bk_dataset *ds, int64_t seq_len);
BK_API bk_status bk_dataset_eval_window(const bk_dataset *ds, int64_t seq_len, int64_t i,
                                        int32_t *ids, int32_t *targets, int64_t *kept);

/* ---- tokens for one pass ---- */

/* Tokens for one pass, as `birkhoff forward --tokens` takes them: a safetensors file with input_ids
 * [B,T], of I32 or I64, and optionally targets [B,T], where -100 means ignored. Without targets
 * that of a position is the next id, and the last position has none. */
typedef struct bk_tokens {
  int64_t batch, seq_len, kept; /* B, T and the number of targets that count */
  int32_t *ids, *targets;       /* [B,T] */
} bk_tokens;

/* Returns BK_ERR_DATA, with file, tensor and place, for a wrong shape or dtype, for sequences
 * longer than `longest`, for a token that is not below vocab_size, and where no target counts. */
BK_API bk_status bk_tokens_read(bk_context *ctx, const char *path, int64_t vocab_size,
                                int64_t longest, bk_tokens *tokens);
/* Frees what bk_tokens_read made; a zeroed struct is allowed. */
BK_API void bk_tokens_fini(bk_context *ctx, bk_tokens *tokens);

#ifdef __cplusplus
}
#endif
#endif
