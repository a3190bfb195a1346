/* A model that trains on a text, for tests of what its steps do. */
#ifndef BK_TESTS_RUN_H
#define BK_TESTS_RUN_H

#include "tests/models/models.h"

#include "models/trainer.h"

typedef struct run {
  bk_device *device;
  bk_model *model;
  bk_dataset *data; /* for training and validation both */
  bk_trainer *trainer;
} run;

static run run_begin(bk_device *device, bk_dataset *data, bk_dtype dtype, const bk_model_config *c,
                     const bk_train_config *recipe) {
  run r = {.device = device, .data = data};
  OK(bk_model_create(r.device, c, dtype, &(bk_model_options){.trainable = true}, &r.model));
  OK(bk_model_init(r.model, 7));
  OK(bk_trainer_create(r.model, recipe, r.data, r.data, &r.trainer));
  return r;
}

static void run_close(run *r) {
  bk_trainer_destroy(r->trainer);
  bk_model_destroy(r->model);
  bk_dataset_close(r->data);
  bk_device_close(r->device);
}

/* 100 steps of so many sequences at once, two in all; nothing is measured beside them. */
static bk_train_config run_recipe(int64_t micro) {
  bk_train_config t;
  bk_train_config_default(&t);
  t.steps = 100;
  t.batch_size = 2;
  t.micro_batch_size = micro;
  t.seq_len = 16;
  t.lr = 3e-3;
  t.warmup_steps = 2;
  t.eval_every = t.gain_every = 0;
  return t;
}

#endif
