/* The messages of the control store. A message is a header of 16 bytes, numbers in little endian,
 * and behind it the key and the value:
 *
 *   magic 4, version 2, kind 2, length of the key 4, length of the value 4
 *
 * What a kind may carry is in one table, so that a length is refused before it is used, and a
 * stranger who sends something else is found out at the first wrong byte. */
#include "comm/store_priv.h"

#include <string.h>

typedef struct limits {
  uint32_t key_least, key_most, value_least, value_most;
} limits;

/* False for a kind that is none. */
static bool limits_of(uint32_t kind, limits *l) {
  limits found = {0};
  switch (kind) {
    case STORE_HELLO: found = (limits){0, 0, 8, 8 + STORE_TOKEN}; break;
    case STORE_SET: found = (limits){1, BK_STORE_KEY, 0, BK_STORE_VALUE}; break;
    case STORE_GET: found = (limits){1, BK_STORE_KEY, 0, 0}; break;
    case STORE_VALUE: found = (limits){0, 0, 0, BK_STORE_VALUE}; break;
    case STORE_ABORT:
    case STORE_ABORTED:
    case STORE_REFUSED: found = (limits){0, 0, 0, BK_STORE_REASON}; break;
    case STORE_BEAT:
    case STORE_GOODBYE:
    case STORE_WELCOME:
    case STORE_ALIVE:
    case STORE_DONE:
    case STORE_FULL:
    case STORE_NOTHING:
    case STORE_FAREWELL: break;
    default: return false;
  }
  *l = found;
  return true;
}

uint32_t store_read_u32(const unsigned char *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t read_u16(const unsigned char *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }

void store_write_u32(unsigned char *p, uint32_t x) {
  for (int i = 0; i < 4; i++) p[i] = (unsigned char)(x >> 8 * i);
}

static bool magic_so_far(const unsigned char *data, size_t bytes) {
  unsigned char magic[4];
  store_write_u32(magic, STORE_MAGIC);
  return memcmp(data, magic, bytes < sizeof magic ? bytes : sizeof magic) == 0;
}

store_parsed store_parse(const unsigned char *data, size_t bytes, store_message *message,
                         size_t *used) {
  limits l;
  if (bytes == 0) return STORE_PARTIAL;
  if (!magic_so_far(data, bytes)) return STORE_GARBAGE;
  if (bytes < STORE_HEADER) return STORE_PARTIAL;
  if (read_u16(data + 4) != STORE_VERSION) return STORE_OTHER_VERSION;
  uint32_t kind = read_u16(data + 6), key = store_read_u32(data + 8);
  uint32_t value = store_read_u32(data + 12);
  if (!limits_of(kind, &l) || key < l.key_least || key > l.key_most || value < l.value_least ||
      value > l.value_most)
    return STORE_GARBAGE;
  if (bytes - STORE_HEADER < (size_t)key + value) return STORE_PARTIAL;
  if (memchr(data + STORE_HEADER, 0, key)) return STORE_GARBAGE;
  *message = (store_message){.kind = (store_kind)kind,
                             .key = data + STORE_HEADER,
                             .value = data + STORE_HEADER + key,
                             .key_bytes = key,
                             .value_bytes = value};
  *used = STORE_HEADER + (size_t)key + value;
  return STORE_WHOLE;
}

bool store_put(unsigned char *out, size_t room, size_t *used, const store_message *m) {
  if (room - *used < STORE_HEADER + m->key_bytes + m->value_bytes) return false;
  unsigned char *p = out + *used;
  store_write_u32(p, STORE_MAGIC);
  p[4] = (unsigned char)STORE_VERSION, p[5] = 0;
  p[6] = (unsigned char)m->kind, p[7] = 0;
  store_write_u32(p + 8, (uint32_t)m->key_bytes);
  store_write_u32(p + 12, (uint32_t)m->value_bytes);
  if (m->key_bytes) memcpy(p + STORE_HEADER, m->key, m->key_bytes);
  if (m->value_bytes) memcpy(p + STORE_HEADER + m->key_bytes, m->value, m->value_bytes);
  *used += STORE_HEADER + m->key_bytes + m->value_bytes;
  return true;
}
