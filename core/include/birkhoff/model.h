/* Models, which are the weights of a transformer on a device, and checkpoints. */
#ifndef BIRKHOFF_MODEL_H
#define BIRKHOFF_MODEL_H

#include <birkhoff/config.h>
#include <birkhoff/device.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_model bk_model;

/* A range [begin, end) of the 2 * num_hidden_layers sublayers, which are attention and feed-forward
 * in turn. A range that begins at 0 includes the embedding; one that ends at 2 * num_hidden_layers
 * includes what follows the last sublayer: the streams become one, final norm, vocabulary head. */
typedef struct bk_chunk_range {
  int64_t begin, end;
} bk_chunk_range;
#define BK_CHUNKS_MAX 16

typedef struct bk_model_options {
  bool trainable; /* the model has gradients, masters and moments too */
  /* The parts of the model that this one holds; no two may overlap. 0 means one chunk, the whole
   * model, or with a pipeline the chunks of this rank. Training without a pipeline needs all of the
   * model: each chunk must begin where the one before it ends. */
  int n_chunks;
  bk_chunk_range chunks[BK_CHUNKS_MAX];
  bool plan_only; /* only sizes are worked out, and no memory is taken, as in `birkhoff plan` */
  /* A checkpoint with NaN or infinities is loaded with a warning, and not refused. */
  bool allow_nonfinite;
  /* The ranks that train the model together (birkhoff/parallel.h); NULL: this process alone. Each
   * rank has all weights and gradients, or with a pipeline those of its stages, and its share of
   * masters and moments. The comm must outlive
   * the model, and all calls that train, save or load it are collective. */
  struct bk_comm *comm;
  /* Which of the sublayers each rank holds; NULL: all. The chunks are then the pipeline's, and
   * n_chunks is 0 here. It must outlive the model. */
  struct bk_pipeline *pipeline;
} bk_model_options;

/* Makes a model whose weights are not set: bk_model_init or bk_checkpoint_load_weights does that.
 * The device must outlive it; config and options are copied. */
BK_API bk_status bk_model_create(bk_device *device, const bk_model_config *config, bk_dtype dtype,
                                 const bk_model_options *options, bk_model **model);
BK_API void bk_model_destroy(bk_model *model); /* NULL is allowed */
/* Sets weights and masters to their initial values and moments to zero. A value depends on the
 * seed, the tensor's name and the element alone, and has the same bits on every machine and
 * backend. */
BK_API bk_status bk_model_init(bk_model *model, uint64_t seed);
/* The same, but of a tensor of more than 2^21 elements only the first 2^20 are drawn, and copies on
 * the device repeat them. So a large model is ready within seconds, to be timed and not to be
 * trained. */
BK_API bk_status bk_model_init_rough(bk_model *model, uint64_t seed);

/* What a model was made with. The configuration is valid as long as the model. */
BK_API const bk_model_config *bk_model_config_of(const bk_model *model);
BK_API bk_dtype bk_model_dtype(const bk_model *model);

/* ---- parameters: the tensors of a checkpoint, in its order and under its names ---- */
#define BK_PARAM_MAX_DIMS 4
typedef struct bk_param_info {
  /* "model.layers.3.mlp.experts.7.up_proj.weight"; valid as long as the model */
  const char *name;
  int ndim;
  int64_t shape[BK_PARAM_MAX_DIMS];
  int64_t count;  /* elements */
  bool trainable; /* false for the router's correction bias, which the balancing rule sets */
} bk_param_info;
BK_API int bk_model_param_count(const bk_model *model);
BK_API bk_status bk_model_param_info(const bk_model *model, int i, bk_param_info *info);
/* What a model holds of a parameter: the weight, and where the model is trainable the gradient, the
 * moments m and v of AdamW, and of a bf16 weight the fp32 master. */
typedef enum bk_param_part {
  BK_PARAM_WEIGHT,
  BK_PARAM_GRAD,
  BK_PARAM_MASTER,
  BK_PARAM_M,
  BK_PARAM_V
} bk_param_part;
/* Copy all elements to or from a dense array of info.count doubles in host memory, and wait for the
 * device. BK_ERR_ARGUMENT for a part that the model does not hold. */
BK_API bk_status bk_model_param_read(const bk_model *model, int i, bk_param_part part,
                                     double *values);
BK_API bk_status bk_model_param_write(bk_model *model, int i, bk_param_part part,
                                      const double *values);
/* Checks that all weights, masters and moments on the device are finite. If one is not, `what`
 * names the first of them in words and BK_ERR_NOT_FINITE is returned, which is not logged; else
 * `what` is empty. */
BK_API bk_status bk_model_check_finite(bk_model *model, char *what, size_t size);

/* The bytes that the model itself takes in one class: of its weights, gradients and so on. With
 * several ranks the class comm is host memory, in which what comes from other ranks is summed, and
 * by way of which it goes to and from a device. */
BK_API size_t bk_model_bytes(const bk_model *model, bk_memory_class c);

/* What is counted from the configuration alone. The active parameters are those that one token
 * uses: of the routed experts the chosen ones, and of the two vocabulary matrices one. */
typedef struct bk_model_counts {
  int64_t parameters_total, parameters_active, parameters_connections, parameters_vocabulary;
  /* of training: 6 x the active matrix parameters, plus causal attention at seq_len; what is
   * recomputed does not count */
  double flops_per_token;
} bk_model_counts;
BK_API void bk_model_count(const bk_model_config *config, int64_t seq_len, bk_model_counts *counts);

/* ---- checkpoints ---- */

/* A checkpoint is a folder with config.json and model.safetensors, and to go on training also with
 * optimizer.safetensors and trainer_state.json; doc/files.md says what they hold, and how several
 * ranks write both in parts. A model of any number of ranks, in pipelines or not, loads what any
 * other has saved. A checkpoint is written beside its final name, as NAME.tmp, synced and renamed,
 * so a crash leaves the previous one whole. bk_checkpoint_save, bk_checkpoint_load,
 * bk_checkpoint_load_weights, bk_checkpoint_load_optimizer and bk_checkpoint_convert_plain are
 * collective where a model has several ranks, and return the same on all of them.
 *
 * model.safetensors has the weights under Hugging Face's names, in the run's dtype (hc_*, norm
 * weights and the router in fp32 at least), with the metadata format = pt. optimizer.safetensors
 * has "m.NAME", "v.NAME" and, for a weight in bf16, "master.NAME".
 *
 * Of weights the reader takes
 *   files    model.safetensors, or where it is not there the shards that
 *            model.safetensors.index.json names
 *   dtypes   F32, BF16, F64 and F16, into a model of any dtype
 *   names    Hugging Face's for DeepSeek-V3; those of transformers' modules (attn_hc.fn, ffn_hc.fn,
 *            hc_head.hc_fn); names without "model."; and in front of any of these "module."
 *            (DataParallel, DistributedDataParallel) and "_orig_mod." (torch.compile), in any
 *            number and order
 *   experts  one tensor for each matrix; or model.layers.N.mlp.experts.gate_up_proj [E, 2 I, C],
 *            which has for each expert the rows of gate and then those of up, and
 *            model.layers.N.mlp.experts.down_proj [E, C, I]
 * It passes over *rotary_emb.inv_freq, which is computed, and the tensors of the
 * num_nextn_predict_layers layers past num_hidden_layers, which are not part of this model.
 *
 * It refuses, by name: a tensor that is missing, has another shape, does not belong to the
 * configuration, or is there in two forms; FP8 (F8_E4M3 and the like, *_scale_inv), because block
 * scales are not applied: convert it to bf16 first; PyTorch's own files (pytorch_model.bin):
 * convert them to safetensors first; NaN, infinities and numbers that the model's dtype cannot
 * hold, unless allow_nonfinite is set. The reader of config.json refuses tied embeddings,
 * rope_interleave false, YaRN and quantization_config. */

/* Finds the checkpoint that a user means. `given` is a checkpoint, or the folder of a run, which
 * means its newest step-NNNNNN folder that is whole (BK_CHECKPOINT_READ). *path is to be bk_free'd.
 * BK_ERR_DATA if it is neither, with what is missing. Where a crash interrupted the replacement of
 * a checkpoint, the result is the older one that was moved aside (PATH.old.tmp), with a warning. */
BK_API bk_status bk_checkpoint_resolve(bk_context *ctx, const char *given, char **path);
/* What a step folder must have to count. */
typedef enum bk_checkpoint_use {
  BK_CHECKPOINT_ANY,   /* its name alone */
  BK_CHECKPOINT_READ,  /* config.json and the weights */
  BK_CHECKPOINT_RESUME /* optimizer.safetensors and trainer_state.json too */
} bk_checkpoint_use;
/* Finds the newest step-NNNNNN in a folder that is whole. That means: no file is missing, no JSON
 * file is empty, cut short or damaged, and no safetensors file begins with zeros or is shorter than
 * its header says. Newer ones that are not whole are passed over with a warning that says what they
 * lack. *step is -1 if there is no step folder, or no folder at all. If there are step folders and
 * none is whole, the result is BK_ERR_DATA, and the message names the newest and what it lacks. */
BK_API bk_status bk_checkpoint_newest(bk_context *ctx, const char *folder, bk_checkpoint_use use,
                                      int64_t *step);
/* Returns "DIR/step-000123", which is to be bk_free'd, or NULL if memory is lacking. */
BK_API char *bk_checkpoint_step_path(bk_context *ctx, const char *folder, int64_t step);
/* Keeps the newest `keep` step folders from which training can go on (BK_CHECKPOINT_RESUME) and
 * removes those that are older, and left-over *.tmp folders. A folder that is not whole does not
 * count; it is removed only if it is older than those that are kept. */
BK_API bk_status bk_checkpoint_prune(bk_context *ctx, const char *folder, int64_t keep);

/* Writes a checkpoint; with state NULL, weights and configuration only. A checkpoint that is at
 * `path` is replaced. Anything else there is left alone, and the result is BK_ERR_ARGUMENT. So it
 * is where the model has only some of its sublayers; where those of all ranks are not one whole
 * model, it is BK_ERR_COMM. */
BK_API bk_status bk_checkpoint_save(bk_model *model, const bk_trainer_state *state,
                                    const char *path);

/* The bytes of host memory that saving the model and loading it again take beside it: 16 MiB at the
 * most, whatever its size. */
BK_API size_t bk_checkpoint_staging(const bk_model *model);

/* ---- saving while training goes on ---- */

/* One save after the other of a model. begin copies what this rank saves to host memory and starts
 * a thread that writes it; the model may change as soon as begin has returned. In a context whose
 * file access is the program's own, and in one without an operating system, no thread is started:
 * begin then writes everything itself.
 *
 *   bk_checkpoint_saving *saving = NULL;
 *   ...  bk_checkpoint_save_begin(model, &state, path, &saving);     at the step to be saved
 *   ...  bk_checkpoint_save_done(saving, &done);                     after each later step
 *   bk_checkpoint_save_end(saving);                                  before the model goes
 *
 * With several ranks all three are collective, and return the same on all of them. Until the save
 * is done its folder is PATH.tmp, and what was at PATH before is whole. */
typedef struct bk_checkpoint_saving bk_checkpoint_saving;
/* With *saving NULL, which is the first time, its memory is made, and used again by later calls. If
 * the save before is still under way, it is completed first; where that fails, its status is
 * returned, and nothing new has begun. Nothing is under way after a failure. The state is copied.
 */
BK_API bk_status bk_checkpoint_save_begin(bk_model *model, const bk_trainer_state *state,
                                          const char *path, bk_checkpoint_saving **saving);
/* Waits for no disk. *done is true when nothing is under way any more: the checkpoint is in place,
 * or has failed, which is returned once. NULL is allowed, and done. */
BK_API bk_status bk_checkpoint_save_done(bk_checkpoint_saving *saving, bool *done);
/* Waits for what is under way, puts it in place, and frees the memory, whatever it returns. NULL is
 * allowed. */
BK_API bk_status bk_checkpoint_save_end(bk_checkpoint_saving *saving);
/* The bytes of host memory that such saves hold from the first one on: what this rank writes. */
BK_API size_t bk_checkpoint_save_bytes(const bk_model *model);

/* Makes a model from a folder's config.json and weights. With dtype BK_NONE it takes the dtype of
 * the checkpoint's matrices, fp32 if they are F16. A trainable model gets its masters from the
 * weights, and zero moments. */
BK_API bk_status bk_checkpoint_load(bk_device *device, const char *path, bk_dtype dtype,
                                    const bk_model_options *options, bk_model **model);
/* Loads the weights of the folder `path` into a model that exists. Every tensor must be there, and
 * none may be left over. A model that has only some of its sublayers, as on a rank of a pipeline,
 * reads what it holds, and passes over the tensors of the other sublayers. If numbers are not
 * finite, a message names file, tensor, first element with its value, and how many other tensors
 * have such. All is loaded, and the result is BK_ERR_DATA, or with allow_nonfinite a warning. */
BK_API bk_status bk_checkpoint_load_weights(bk_model *model, const char *path);
/* Loads moments and masters, after which training goes on to the same bits. The same holds for
 * numbers that are not finite. */
BK_API bk_status bk_checkpoint_load_optimizer(bk_model *model, const char *path);
/* The dtype of the matrices in the folder `path`. It is fp32 for F16, which fp32 holds exactly. */
BK_API bk_status bk_checkpoint_dtype(bk_context *ctx, const char *path, bk_dtype *dtype);
/* Checks that all weights, masters and moments in the folder's files are finite. If one is not,
 * *what says which, is to be bk_free'd, and BK_ERR_NOT_FINITE is returned, which is not logged;
 * else *what is NULL. */
BK_API bk_status bk_checkpoint_check_finite(bk_context *ctx, const char *path, char **what);

/* What `birkhoff init --from` does: fills `model`, of any residual kind, from a plain checkpoint
 * such that its logits are the same. Reads average the streams (pre = 1/n), writes sum to n, every
 * mixing matrix is doubly stochastic and fn is zero. So the mean of the streams follows the plain
 * residual, while the streams themselves differ. With a learned head the logits agree to rounding.
 * With the sum, the final norm sees n times the value, and so its eps counts only 1/n^2 as much.
 * With hc_eps > 0 the rows and columns of mhc's mixing matrices sum to 1 - hc_eps and not to 1, and
 * the logits agree to about that. An hc_eps of 1/hc_mult or more is BK_ERR_CONFIG. */
BK_API bk_status bk_checkpoint_convert_plain(bk_model *model, const char *path);

#ifdef __cplusplus
}
#endif
#endif
