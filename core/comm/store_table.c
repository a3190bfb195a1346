/* Rank 0's keys and values: an array that is made once, with all the room that it may ever take,
 * which the system gives when it is first touched. */
#include "comm/store_priv.h"

#include <string.h>

static int find(const store_table *table, uint32_t hash, const void *key, size_t bytes) {
  for (int i = 0; i < table->count; i++) {
    const store_entry *e = &table->entries[i];
    if (table->hashes[i] == hash && e->key_bytes == bytes && memcmp(e->key, key, bytes) == 0)
      return i;
  }
  return -1;
}

bool store_table_set(store_table *table, const void *key, size_t key_bytes, const void *value,
                     size_t value_bytes) {
  uint32_t hash = (uint32_t)bk_hash64(key, key_bytes);
  int at = find(table, hash, key, key_bytes);
  if (at < 0 && table->count == BK_STORE_ENTRIES) return false;
  if (at < 0) at = table->count++;
  store_entry *e = &table->entries[at];
  table->hashes[at] = hash;
  e->key_bytes = (uint32_t)key_bytes;
  e->value_bytes = (uint32_t)value_bytes;
  memcpy(e->key, key, key_bytes);
  if (value_bytes) memcpy(e->value, value, value_bytes);
  return true;
}

const store_entry *store_table_get(const store_table *table, const void *key, size_t key_bytes) {
  int at = find(table, (uint32_t)bk_hash64(key, key_bytes), key, key_bytes);
  return at < 0 ? NULL : &table->entries[at];
}
