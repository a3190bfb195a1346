// A forward and a backward pass from C++17: makes the `tiny` model with mHC connections (or loads
// the checkpoint in the folder that is given), predicts each next byte of a sentence, and prints
// the loss, the most amplifying residual map and the largest gradient. Everything is released by
// its owner, whatever fails.
//   c++ -std=c++17 forward.cpp $(pkg-config --cflags --libs birkhoff) && ./a.out [CHECKPOINT]
#include <birkhoff/birkhoff.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void print_message(void *, bk_log_level, const char *message) {
  std::fprintf(stderr, "%s\n", message);
}

void check(bk_status status) {
  if (status != BK_OK) throw std::runtime_error(bk_status_name(status));
}

// A handle of the library with the function that releases it.
template <typename T, void (*release)(T *)>
struct releases {
  void operator()(T *handle) const { release(handle); }
};
template <typename T, void (*release)(T *)>
using owned = std::unique_ptr<T, releases<T, release>>;

std::vector<double> read(const bk_model *model, int i, bk_param_part part,
                         const bk_param_info &info) {
  std::vector<double> values(static_cast<std::size_t>(info.count));
  check(bk_model_param_read(model, i, part, values.data()));
  return values;
}

void run(bk_context *ctx, const char *checkpoint) {
  bk_device *opened = nullptr;
  check(bk_device_open(ctx, nullptr, nullptr, &opened)); // the best device that is here
  owned<bk_device, bk_device_close> device(opened);

  bk_model_options options = {};
  options.trainable = true; // gradients are wanted
  bk_model *made = nullptr;
  if (checkpoint) {
    check(bk_checkpoint_load(device.get(), checkpoint, BK_NONE, &options, &made));
  } else {
    bk_model_config config;
    check(bk_model_preset(ctx, "tiny", &config, nullptr));
    check(bk_config_set(ctx, &config, nullptr, "residual=mhc"));
    check(bk_model_create(device.get(), &config, BK_F32, &options, &made));
  }
  owned<bk_model, bk_model_destroy> model(made);
  if (!checkpoint) check(bk_model_init(model.get(), 1));

  const std::string text = "All happy families are alike";
  std::vector<int32_t> ids(text.begin(), text.end()), targets(ids.begin() + 1, ids.end());
  targets.push_back(-100); // nothing is known to follow the last byte
  bk_forward_options pass = {};
  pass.batch = 1;
  pass.seq_len = static_cast<int64_t>(ids.size());
  pass.backward = true;
  bk_forward *prepared = nullptr;
  check(bk_forward_create(model.get(), &pass, &prepared));
  owned<bk_forward, bk_forward_destroy> forward(prepared);

  double loss, gain = 0;
  check(bk_forward_run(forward.get(), ids.data(), targets.data()));
  const bk_model_config *config = bk_model_config_of(model.get());
  if (config->residual != BK_HC_PLAIN) {
    const std::size_t n = static_cast<std::size_t>(config->hc_mult), tokens = ids.size();
    std::vector<double> pre(tokens * n), post(tokens * n), comb(tokens * n * n);
    for (int s = 0; s < 2 * config->num_hidden_layers; s++) {
      check(bk_forward_maps(forward.get(), s, pre.data(), post.data(), comb.data()));
      for (std::size_t row = 0; row < tokens * n;
           row++) { // what a source gives to all destinations
        double sum = 0;
        for (std::size_t k = 0; k < n; k++) sum += comb[row * n + k];
        gain = std::max(gain, std::fabs(sum));
      }
    }
  }
  check(bk_forward_backward(forward.get()));
  check(bk_forward_finish(forward.get(), &loss));
  std::printf("loss %.4f nats per byte over %zu bytes\n", loss, ids.size() - 1);
  if (gain > 0) std::printf("largest gain of a residual map, backward: %.6f\n", gain);

  double most = -1;
  std::string where;
  for (int i = 0; i < bk_model_param_count(model.get()); i++) {
    bk_param_info info;
    check(bk_model_param_info(model.get(), i, &info));
    if (!info.trainable) continue;
    double norm = 0;
    for (double g : read(model.get(), i, BK_PARAM_GRAD, info)) norm += g * g;
    if (std::sqrt(norm) > most) most = std::sqrt(norm), where = info.name;
  }
  std::printf("largest gradient: %s, norm %.4f\n", where.c_str(), most);
}

} // namespace

int main(int argc, char **argv) {
  bk_context_options options = {};
  options.log = print_message;
  options.log_level = BK_LOG_WARN;
  bk_context *made = nullptr;
  if (bk_context_create(&options, &made) != BK_OK) return 1;
  owned<bk_context, bk_context_destroy> ctx(made);
  try {
    run(ctx.get(), argc > 1 ? argv[1] : nullptr);
  } catch (const std::exception &failure) {
    std::fprintf(stderr, "forward: %s\n", failure.what());
    return 1;
  }
  return 0;
}
