/* What the files of the dataset share: dataset.c has the segments, the order and the windows,
 * dataset_files.c what is done with files. */
#ifndef BK_DATASET_PRIV_H
#define BK_DATASET_PRIV_H

#include "io/dataset.h"

/* A segment holds the tokens of one file, or those of the caller. */
typedef struct bk_segment {
  int64_t first;    /* number of its first token in the whole data */
  int64_t count;    /* tokens, the end token included */
  int width;        /* bytes per stored token: 1 text, 2, 4 */
  bool ends;        /* text: BK_TOKEN_END after the stored bytes */
  bool sampled;     /* too large to be read whole at opening */
  const void *data; /* the caller's tokens; NULL: they lie in a file */
  int file;         /* its number */
  uint64_t begin;   /* byte of the file at which the tokens begin */
} bk_segment;

/* A file of the data. `file` is NULL where it is opened anew for each reading. */
typedef struct bk_source {
  char *path;
  bk_file *file;
} bk_source;

/* Segments one after the other make one long sequence of tokens; a training sequence may cross from
 * one to the next. */
struct bk_dataset {
  bk_context *ctx;
  bk_segment *segments; /* none is empty */
  size_t n_segments;
  bk_source *sources;  /* of files, in the order in which they were given */
  bk_data_file *files; /* what identifies each of them */
  int n_files;
  int64_t vocab, tokens, bytes;
  int64_t kept_back; /* tokens of .bin files that BK_SPLIT_TRAIN leaves for validation */
  bool parted;       /* BK_SPLIT_TRAIN has left a part of some file for validation */
  uint64_t hash;
};

/* The hash is chained over the segments, so that the order of the files counts. `contents` is that
 * of the stored bytes. Of a segment that was read whole it is what it was in versions that read
 * all data into memory: their checkpoints hold it. */
uint64_t bk_segment_hash(uint64_t before, const bk_segment *g, uint64_t contents,
                         uint64_t file_bytes);

/* ---- dataset_files.c ---- */
bk_status bk_dataset_add_files(bk_dataset *ds, const char *const *paths, int n_paths,
                               const bk_dataset_options *options);
void bk_dataset_free_files(bk_dataset *ds);
/* Reads the stored tokens [i, i + count) of a segment that lies in a file. False, with the fault:
 * the file cannot be read or has changed, or a token is not below the size of the vocabulary. */
bool bk_segment_read(const bk_dataset *ds, const bk_segment *g, int64_t i, int64_t count,
                     int32_t *out, bk_data_fault *fault);

#endif
