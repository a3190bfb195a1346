/* Models: weights of a transformer on a device, and checkpoints. */
#ifndef BIRKHOFF_MODEL_H
#define BIRKHOFF_MODEL_H

#include <birkhoff/config.h>
#include <birkhoff/device.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_model bk_model;

/* A range [begin, end) of the 2 * num_hidden_layers sublayers: attention and feed-forward in turn.
 * The embedding belongs to begin == 0, final collapse, norm and head to
 * end == 2 * num_hidden_layers. */
typedef struct bk_chunk_range {
  int64_t begin, end;
} bk_chunk_range;
#define BK_CHUNKS_MAX 16

typedef struct bk_model_options {
  bool trainable; /* gradients, masters and moments too */
  /* The parts that this model is made of; no two may overlap. 0: one chunk, the whole model.
   * Training wants all of the model, each chunk where the one before it ends. */
  int n_chunks;
  bk_chunk_range chunks[BK_CHUNKS_MAX];
  bool plan_only; /* sizes only: no memory is committed (`birkhoff plan`) */
  /* a checkpoint with NaN or infinities is loaded, with a warning; else it is refused */
  bool allow_nonfinite;
} bk_model_options;

BK_API bk_status bk_model_create(bk_device *device, const bk_model_config *config, bk_dtype dtype,
                                 const bk_model_options *options, bk_model **model);
BK_API void bk_model_destroy(bk_model *model); /* NULL is allowed */
/* Initial values from (seed, hash of name, element), the same bits on every machine and backend;
 * masters, zero moments. */
BK_API bk_status bk_model_init(bk_model *model, uint64_t seed);
/* The same, but of a tensor of more than 2^21 elements the first 2^20 are drawn and repeated, by
 * copies on the device: large models are ready in seconds, to be timed, not to be trained. */
BK_API bk_status bk_model_init_rough(bk_model *model, uint64_t seed);

/* What it was made with. The configuration stays as long as the model. */
BK_API const bk_model_config *bk_model_config_of(const bk_model *model);
BK_API bk_dtype bk_model_dtype(const bk_model *model);

/* ---- parameters: the tensors of a checkpoint, under their names there, in its order ---- */
#define BK_PARAM_MAX_DIMS 4
typedef struct bk_param_info {
  const char *name; /* "model.layers.3.mlp.experts.7.up_proj.weight"; as long as the model */
  int ndim;
  int64_t shape[BK_PARAM_MAX_DIMS];
  int64_t count;  /* elements */
  bool trainable; /* the router's correction bias is not: the balancing rule writes it */
} bk_param_info;
BK_API int bk_model_param_count(const bk_model *model);
BK_API bk_status bk_model_param_info(const bk_model *model, int i, bk_param_info *info);
/* What there is of a parameter: a model that is not trainable has weights alone, and masters are
 * there where the weights are not fp32 (or fp64) themselves. */
typedef enum bk_param_part {
  BK_PARAM_WEIGHT,
  BK_PARAM_GRAD,
  BK_PARAM_MASTER,
  BK_PARAM_M,
  BK_PARAM_V
} bk_param_part;
/* All elements as doubles, densely, to and from host memory of info.count doubles; waits for the
 * device. What the model does not have: BK_ERR_ARGUMENT, logged. */
BK_API bk_status bk_model_param_read(const bk_model *model, int i, bk_param_part part,
                                     double *values);
BK_API bk_status bk_model_param_write(bk_model *model, int i, bk_param_part part,
                                      const double *values);
/* Whether all weights, masters and moments on the device are finite. BK_ERR_NOT_FINITE, not
 * logged, with the first that is not in `what`, in words; else `what` is empty. */
BK_API bk_status bk_model_check_finite(bk_model *model, char *what, size_t size);

/* Bytes of the weights, gradients, ... of the model itself. */
BK_API size_t bk_model_bytes(const bk_model *model, bk_memory_class c);

/* Counts from the configuration alone. Active: the routed experts a token uses, and one of the
 * two vocabulary matrices. */
typedef struct bk_model_counts {
  int64_t parameters_total, parameters_active, parameters_connections, parameters_vocabulary;
  /* training: 6 x active matrix parameters + causal attention at seq_len, recompute not counted */
  double flops_per_token;
} bk_model_counts;
BK_API void bk_model_count(const bk_model_config *config, int64_t seq_len, bk_model_counts *counts);

/* ---- checkpoints ---- */

/* Checkpoints (doc/files.md): a folder with config.json and model.safetensors, and for
 * resuming optimizer.safetensors and trainer_state.json. Written beside its final name as
 * NAME.tmp, synced, renamed: a crash leaves the previous one whole.
 *
 * model.safetensors: weights under Hugging Face's names in the run's dtype (hc_*, norm weights,
 * router bias in fp32), metadata format = pt. optimizer.safetensors: "m.NAME", "v.NAME" and,
 * where the weights are not fp32 themselves, "master.NAME".
 *
 * Of weights the reader takes
 *   files    model.safetensors; where it is not there, the shards that
 *            model.safetensors.index.json names
 *   dtypes   F32, BF16, F64 and F16, into a model of any dtype
 *   names    Hugging Face's for DeepSeek-V3; transformers' module names (attn_hc.fn, ffn_hc.fn,
 *            hc_head.hc_fn); names without "model.";
 *            before any of them "module." (DataParallel, DistributedDataParallel) and
 *            "_orig_mod." (torch.compile) in any number and order
 *   experts  one tensor per matrix, or model.layers.N.mlp.experts.gate_up_proj [E, 2 I, C] (for
 *            each expert the gate's rows, then up's)
 *            and model.layers.N.mlp.experts.down_proj [E, C, I]
 *   others   passed over: *rotary_emb.inv_freq, which is computed, and model.layers.L.* of the
 *            num_nextn_predict_layers layers
 *            L >= num_hidden_layers, which are not part of this model
 * It refuses, by name: a tensor that is missing, has another shape, does not belong to the
 * configuration or is there in two forms; FP8 (F8_E4M3 and the like, *_scale_inv): block scales
 * are not applied, convert to bf16 first; PyTorch's own files (pytorch_model.bin): convert to
 * safetensors first; NaN and infinities, and numbers that the model's dtype cannot hold, unless
 * allow_nonfinite is set. What config.json may say is refused by its reader (tied embeddings,
 * rope_interleave false, YaRN, quantization_config). */

/* A checkpoint folder, or a training folder of step-NNNNNN folders, which means its newest that
 * is whole (BK_CHECKPOINT_READ). *path is to be bk_free'd. Neither: BK_ERR_DATA that says what
 * is missing. Where a crash interrupted the replacement of a checkpoint, the older one that was
 * moved aside (PATH.old.tmp), with a warning. */
BK_API bk_status bk_checkpoint_resolve(bk_context *ctx, const char *given, char **path);
/* What a step folder has to have to count: its name alone; config.json and weights;
 * optimizer.safetensors and trainer_state.json too. */
typedef enum bk_checkpoint_use {
  BK_CHECKPOINT_ANY,
  BK_CHECKPOINT_READ,
  BK_CHECKPOINT_RESUME
} bk_checkpoint_use;
/* Newest step-NNNNNN in folder that is whole: no file is missing, no JSON file empty, cut short
 * or damaged, and no safetensors file begins with zeros or is shorter than its header says.
 * Newer ones that are not whole are passed over with a warning that says what they lack. *step =
 * -1 if there is no step folder or no folder; step folders of which none is whole: BK_ERR_DATA
 * that names the newest and what it lacks. */
BK_API bk_status bk_checkpoint_newest(bk_context *ctx, const char *folder, bk_checkpoint_use use,
                                      int64_t *step);
/* "DIR/step-000123"; bk_free */
BK_API char *bk_checkpoint_step_path(bk_context *ctx, const char *folder, int64_t step);
/* Keeps the newest `keep` step folders from which training can go on (BK_CHECKPOINT_RESUME),
 * removes what is older, and left-over *.tmp folders. A folder that is not whole does not count,
 * and stays unless it is older. */
BK_API bk_status bk_checkpoint_prune(bk_context *ctx, const char *folder, int64_t keep);

/* state NULL: weights only (no optimiser, no trainer state). A checkpoint that is at `path` is
 * replaced; anything else there is left alone: BK_ERR_ARGUMENT. */
BK_API bk_status bk_checkpoint_save(bk_model *model, const bk_trainer_state *state,
                                    const char *path);

/* Bytes of the host copy through which saving and loading move tensors, whatever their sizes. */
BK_API size_t bk_checkpoint_staging(void);

/* Reads config.json and the weights. dtype BK_NONE: the dtype of the checkpoint's matrices (of
 * F16: fp32). Trainable models get masters from the weights and zero moments. */
BK_API bk_status bk_checkpoint_load(bk_device *device, const char *path, bk_dtype dtype,
                                    const bk_model_options *options, bk_model **model);
/* Weights of the folder PATH into a model that exists. Every tensor must be there, none may be
 * left over. What is not finite is named (file, tensor, first element and its value, how many
 * further tensors): BK_ERR_DATA once all is loaded, a warning with allow_nonfinite. */
BK_API bk_status bk_checkpoint_load_weights(bk_model *model, const char *path);
/* Moments and masters, for a bit-exact resume; the same holds for what is not finite. */
BK_API bk_status bk_checkpoint_load_optimizer(bk_model *model, const char *path);
/* The dtype of the matrices in the folder PATH; of half precision (F16) fp32, which holds it
 * exactly. */
BK_API bk_status bk_checkpoint_dtype(bk_context *ctx, const char *path, bk_dtype *dtype);
/* Whether all weights, masters and moments in the folder's files are finite. BK_ERR_NOT_FINITE,
 * not logged, with *what (bk_free) saying which is not; else *what is NULL. */
BK_API bk_status bk_checkpoint_check_finite(bk_context *ctx, const char *path, char **what);

/* `init --from`: fills `model` (any residual kind) from a plain checkpoint such that its logits
 * are the same: the reads average the streams (pre = 1/n), the writes sum to n, every mixing
 * matrix is doubly stochastic and fn is zero, so that the mean of the streams follows the plain
 * residual while the streams themselves differ. With a learned head the result is exact; with
 * the sum, the final norm sees n times the value and its eps weighs 1/n^2. With hc_eps > 0 mhc's
 * mixing matrices sum to 1 - hc_eps, not 1, and the logits agree to about that; hc_eps of
 * 1/hc_mult or more: BK_ERR_CONFIG. */
BK_API bk_status bk_checkpoint_convert_plain(bk_model *model, const char *path);

#ifdef __cplusplus
}
#endif
#endif
