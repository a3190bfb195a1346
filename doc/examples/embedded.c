/* Training and generation as a device's firmware would do it: all memory is one static array,
 * there is one thread, no file, no clock, no environment, nothing is loaded at run time. The
 * model is the preset `tiny`; its training text is compiled in.
 *
 * Everything this program wants of its surroundings is put() below: on a board, the serial port.
 * See doc/embedding.md. cc -static -Wl,--gc-sections embedded.c $(pkg-config --cflags birkhoff)
 * -L... -l:libbirkhoff.a -lm */
#include <birkhoff/birkhoff.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MEMORY_BYTES (13 * 512 * 1024)
#define STEPS 40

static const char text[] =
    "In the beginning God created the heaven and the earth. And the earth was without form, and "
    "void; and darkness was upon the "
    "face of the deep. And the Spirit of God moved upon the face of the waters. And God said, Let "
    "there be light: and there was "
    "light. And God saw the light, that it was good: and God divided the light from the darkness. "
    "And God called the light Day, "
    "and the darkness he called Night. And the evening and the morning were the first day.";

/* ---- the board ---- */

static _Alignas(64) unsigned char memory[MEMORY_BYTES];

static void put(const char *line) {
  ssize_t sent = write(STDOUT_FILENO, line, strlen(line));
  (void)sent; /* nobody is left to tell */
}

static void put_message(void *user, bk_log_level level, const char *message) {
  (void)user, (void)level;
  put(message);
  put("\n");
}

/* ---- an allocator over the array: first fit; freed neighbours become one hole again. The
 * library says how large a block was when it gives it back, so that blocks need no header. ---- */

#define UNIT ((size_t)64) /* what the library asks for as alignment */

typedef struct hole {
  size_t bytes;
  struct hole *next; /* by address */
} hole;

typedef struct arena {
  hole *first;
  unsigned char *base;
  size_t high; /* of the array, bytes ever in use */
} arena;

static size_t whole_units(size_t bytes) { return (bytes + UNIT - 1) / UNIT * UNIT; }

static void arena_open(arena *a, void *base, size_t bytes) {
  a->base = base;
  a->high = 0;
  a->first = base;
  *a->first = (hole){bytes / UNIT * UNIT, NULL};
}

static void *arena_alloc(void *user, size_t bytes, size_t align) {
  arena *a = user;
  size_t needed = whole_units(bytes);
  if (align > UNIT || needed < bytes) return NULL;
  for (hole **link = &a->first; *link; link = &(*link)->next) {
    hole *h = *link;
    if (h->bytes < needed) continue;
    hole *rest = (hole *)((unsigned char *)h + needed);
    if (h->bytes > needed) *rest = (hole){h->bytes - needed, h->next};
    *link = h->bytes > needed ? rest : h->next;
    size_t end = (size_t)((unsigned char *)h - a->base) + needed;
    if (end > a->high) a->high = end;
    return h;
  }
  return NULL;
}

static void arena_free(void *user, void *ptr, size_t bytes) {
  arena *a = user;
  hole *before = NULL, *after = a->first, *h = ptr;
  for (; after && after < h; after = after->next) before = after;
  *h = (hole){whole_units(bytes), after};
  if (before) before->next = h;
  else a->first = h;
  if (after && (unsigned char *)h + h->bytes == (unsigned char *)after)
    *h = (hole){h->bytes + after->bytes, after->next};
  if (before && (unsigned char *)before + before->bytes == (unsigned char *)h)
    *before = (hole){before->bytes + h->bytes, h->next};
}

/* ---- what it does ---- */

static bk_status train(bk_model *model, const bk_train_config *recipe, const bk_dataset *data,
                       size_t bytes[BK_MEM_CLASS_COUNT]) {
  bk_trainer *trainer = NULL;
  char line[80];
  bk_status status = bk_trainer_create(model, recipe, data, NULL, &trainer);
  for (int i = 0; status == BK_OK && i < STEPS; i++) {
    bk_metrics_row row;
    status = bk_trainer_step(trainer, &row);
    if (status != BK_OK || (i % 10 && i + 1 < STEPS)) continue;
    snprintf(line, sizeof line, "step %d loss %.4f\n", i + 1, row.loss);
    put(line);
  }
  for (int c = 0; status == BK_OK && c < BK_MEM_CLASS_COUNT; c++)
    bytes[c] =
        bk_model_bytes(model, (bk_memory_class)c) + bk_trainer_bytes(trainer, (bk_memory_class)c);
  bk_trainer_destroy(trainer);
  return status;
}

static bk_status generate(bk_model *model, const char *prompt, int count) {
  bk_generator *generator = NULL;
  int32_t token = 0;
  bk_status status = bk_generator_create(model, (int64_t)strlen(prompt) + count, &generator);
  put("generated: ");
  put(prompt);
  for (const char *p = prompt; status == BK_OK && *p; p++) {
    token = (unsigned char)*p;
    status = bk_generator_feed(generator, &token, 1);
  }
  for (int i = 0; status == BK_OK && i < count; i++) {
    status = bk_generator_sample(generator, 0.3, 0.9, 1, &token);
    if (status != BK_OK || token == BK_TOKEN_END) break;
    put((char[]){(char)token, '\0'});
    if (i + 1 < count) status = bk_generator_feed(generator, &token, 1);
  }
  put("\n");
  bk_generator_destroy(generator);
  return status;
}

static void report(const bk_context *ctx, const arena *a, const size_t bytes[BK_MEM_CLASS_COUNT]) {
  bk_memory_stats stats;
  char line[80];
  for (int c = 0; c < BK_MEM_CLASS_COUNT; c++) {
    if (!bytes[c]) continue;
    snprintf(line, sizeof line, "class %s %zu\n", bk_memory_class_name((bk_memory_class)c),
             bytes[c]);
    put(line);
  }
  bk_context_memory_stats(ctx, &stats);
  snprintf(line, sizeof line, "memory %zu given, %zu touched, %zu asked for at most\n",
           sizeof memory, a->high, stats.peak_bytes);
  put(line);
}

static bk_status run(bk_context *ctx, const arena *a) {
  bk_device *device = NULL;
  bk_dataset *data = NULL;
  bk_model *model = NULL;
  bk_model_config config;
  bk_train_config recipe;
  size_t bytes[BK_MEM_CLASS_COUNT];
  bk_status status = bk_model_preset(ctx, "tiny", &config, &recipe);
  recipe.steps = STEPS;
  recipe.micro_batch_size = 1; /* activations of one sequence at a time, a quarter of the memory */
  recipe.warmup_steps = 5;
  recipe.gain_every = recipe.eval_every = 0;
  if (status == BK_OK) status = bk_device_open_backend(ctx, &bk_backend_cpu, NULL, &device);
  if (status == BK_OK)
    status = bk_dataset_from_tokens(ctx, text, sizeof text - 1, 1, config.vocab_size, &data);
  if (status == BK_OK)
    status =
        bk_model_create(device, &config, BK_F32, &(bk_model_options){.trainable = true}, &model);
  if (status == BK_OK) status = bk_model_init(model, recipe.seed);
  if (status == BK_OK) status = train(model, &recipe, data, bytes);
  if (status == BK_OK) status = generate(model, "In the ", 60);
  if (status == BK_OK) report(ctx, a, bytes);
  bk_model_destroy(model);
  bk_dataset_close(data);
  bk_device_close(device);
  return status;
}

int main(void) {
  arena a;
  bk_context *ctx = NULL;
  const bk_allocator allocator = {arena_alloc, arena_free, &a};
  const bk_context_options options = {
      .allocator = &allocator, .log = put_message, .log_level = BK_LOG_WARN};
  arena_open(&a, memory, sizeof memory);
  bk_status status = bk_context_create_embedded(&options, &ctx);
  if (status == BK_OK) status = run(ctx, &a);
  bk_context_destroy(ctx);
  if (status == BK_OK && a.first->bytes == sizeof memory) put("all memory was given back\n");
  return status == BK_OK ? 0 : 1;
}
