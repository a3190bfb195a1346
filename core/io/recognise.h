/* What a file is that is not what was asked for, by its content: the name says nothing. It is used
 * where a file is opened for reading: token data, weights, configurations. */
#ifndef BK_RECOGNISE_H
#define BK_RECOGNISE_H

#include "base/base.h"

#define BK_RECOGNISE_TEXT 400                 /* room for the words */
#define BK_RECOGNISE_HEAD ((size_t)512)       /* bytes in which every known kind shows */
#define BK_RECOGNISE_SAMPLE ((size_t)1 << 20) /* enough to judge texts and token streams */

typedef enum bk_wanted {
  BK_WANTED_TEXT,
  BK_WANTED_UINT16,
  BK_WANTED_UINT32, /* token streams */
  /* the user said uint16: pairs of an id and a small number may be meant; only every second
   * number 0 shows another width */
  BK_WANTED_UINT16_SAID,
  BK_WANTED_TENSORS, /* safetensors */
  BK_WANTED_JSON
} bk_wanted;

/* True where the file's first `count` bytes show that it is something else than what is wanted:
 * the words say what, and what would be right, to follow "PATH is ": "a gzip archive; unpack it
 * first (gunzip)". file_bytes is the size of the whole file. A pure function. Text: known kinds,
 * and what is plainly binary; never text in whatever encoding that is ASCII's superset, with the
 * control characters that texts have. Streams: known kinds, text, and tokens of another width.
 * Tensors and JSON: known kinds, and for tensors text. */
bool bk_recognise(const void *first, size_t count, uint64_t file_bytes, bk_wanted wanted,
                  char *words, size_t room);

/* Of a stream with a token that is not below vocab_size, read as unsigned integers of `width` (2
 * or 4) bytes: true where many are not, and another width or byte order has every token below
 * it. The words follow such a message: "read as uint16 every token is: set data_dtype=uint16". */
bool bk_recognise_width(const void *stream, size_t bytes, int width, int64_t vocab_size,
                        char *words, size_t room);

#endif
