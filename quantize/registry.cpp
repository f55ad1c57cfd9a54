#include <coppice/quantize.h>

#include "layers/layers.h"

namespace coppice::quantize {

const std::vector<Entry<Observer>>& observers() {
    static const std::vector<Entry<Observer>> table = {
        {"entropy", "the clipping with the least Kullback-Leibler divergence over a histogram",
         [](Options& o) { return entropy(o.integer("bins", 2048, 512, 1 << 20, "bins of the histogram")); }},
        {"histogram", "the range with the least squared error over a histogram",
         [](Options& o) { return histogram(o.integer("bins", 2048, 128, 1 << 20, "bins of the histogram")); }},
        {"minmax", "smallest and largest value", [](Options&) { return minmax(); }},
        {"moving_average", "moving average of each batch's smallest and largest value",
         [](Options& o) { return moving_average(o.number("momentum", 0.1, "weight of the newest batch")); }},
        {"percentile", "the range without a share of the values at each end",
         [](Options& o) {
             const double share = o.number("share", 1e-4, "of the values that may lie outside, both ends together");
             return percentile(share, o.integer("bins", 2048, 128, 1 << 20, "bins of the histogram"));
         }},
    };
    return table;
}

const std::vector<Entry<Rounding>>& roundings() {
    static const std::vector<Entry<Rounding>> table = {
        {"adaround", "learns to round up or down by the layer's output (arXiv 2004.10568)",
         [](Options& o) {
             return adaround(o.integer("steps", 500, 1, INT64_MAX, "of Adam; more are better, the paper takes 10000"));
         }},
        {"awq", "scales input channels by their size before rounding (arXiv 2306.00978)",
         [](Options& o) { return awq(o.integer("candidates", 20, 2, 1000, "exponents tried between 0 and 1")); }},
        {"brecq", "learns to round up or down by the output of a whole block (arXiv 2102.05426)",
         [](Options& o) {
             BlockOptions options;
             options.steps = o.integer("steps", options.steps, 1, INT64_MAX, "of Adam for each block");
             options.batch_size = o.integer("batch_size", options.batch_size, 1, INT64_MAX, "examples in each step");
             options.loss = o.choice("loss", options.loss, {"fisher", "mse"},
                                     "errors of the block's output by how much they move the model's, or all alike");
             return brecq(options);
         }},
        {"gptq", "columns not yet rounded make up for the error (arXiv 2210.17323)",
         [](Options& o) { return gptq(o.number("damping", 0.01, "share of the mean added to the diagonal")); }},
        {"hqq", "offsets under a norm that forgives outliers, without data",
         [](Options& o) { return hqq(o.integer("steps", 20, 1, 10000, "of half-quadratic splitting")); }},
        {"nearest", "every weight to the nearest integer", [](Options&) { return nearest(); }},
    };
    return table;
}

const std::vector<Entry<CentroidInit>>& centroid_inits() {
    static const std::vector<Entry<CentroidInit>> table = {
        {"density", "quantiles of the weights", [](Options&) { return density_init(); }},
        {"kmeans++", "weights far from those drawn before", [](Options&) { return plus_plus_init(); }},
        {"linear", "equal steps from the smallest to the largest weight", [](Options&) { return linear_init(); }},
        {"random", "weights drawn at random", [](Options&) { return random_init(); }},
    };
    return table;
}

const std::vector<Entry<Sensitivity>>& sensitivities() {
    static const std::vector<Entry<Sensitivity>> table = {
        {"hessian", "mean Hessian trace times squared change of the weights (arXiv 1911.03852)",
         [](Options& o) { return hessian_trace(o.integer("samples", 16, 1, INT64_MAX, "random vectors")); }},
        {"kl", "divergence of the model's output, one layer at a time", [](Options&) { return output_divergence(); }},
        {"mse", "mean squared error of the layer's output", [](Options&) { return output_mse(); }},
        {"sqnr", "noise to signal power of the layer's output", [](Options&) { return output_sqnr(); }},
    };
    return table;
}

const std::vector<Entry<PrecisionAllocation>>& precision_allocations() {
    static const std::vector<Entry<PrecisionAllocation>> table = {
        {"exact", "the least sum of losses within the budget, by integer programming",
         [](Options& o) {
             return exact_allocation(o.integer("states", 5'000'000, 1, INT64_MAX, "of the dynamic program, at most"));
         }},
        {"greedy", "the step that saves the most loss per cost, until the budget is spent",
         [](Options&) { return greedy_allocation(); }},
    };
    return table;
}

namespace {

Fallback fallback_of(Options& o) {
    Fallback fallback;
    fallback.max_drop =
        o.number("max_drop", fallback.max_drop,
                 "points of the metric that may be lost; layers that cost most go back to float; -1: off");
    fallback.seconds = o.number("fallback_seconds", fallback.seconds, "of searching for max_drop, at most");
    check_fallback(fallback, o.where().empty() ? o.owner() : o.where() + ", " + o.owner());
    return fallback;
}

template <typename StageOptions>
void read_layer_options(Options& o, StageOptions& options) {
    options.ignore = o.texts("ignore", {}, "regular expressions: layers that stay in float");
    options.min_sqnr_db =
        o.number("min_sqnr_db", options.min_sqnr_db, "layers with a lower signal-to-noise ratio stay in float");
    options.batches = o.integer("batches", options.batches, 1, INT64_MAX, "calibration batches, at most");
    options.batch_size = o.integer("batch_size", options.batch_size, 1, INT64_MAX, "examples in each");
    options.fallback = fallback_of(o);
}

}  // namespace

const std::vector<Entry<Stage>>& stages() {
    static const std::vector<Entry<Stage>> table = {
        {"quantize.auto", "each layer in the fastest precision whose error is allowed, by measuring",
         [](Options& o) {
             AutoOptions options;
             options.least_gain =
                 o.number("least_gain", options.least_gain, "share of a layer's time that must be saved");
             options.forms = o.texts("forms", options.forms, "tried: bf16, dynamic, fp16, int4, int8, static");
             read_layer_options(o, options);
             return auto_precision(options);
         }},
        {"quantize.codebook", "few distinct weights per layer by k-means, for a small file (arXiv 1510.00149)",
         [](Options& o) {
             CodebookOptions options;
             options.bits = o.integer("bits", options.bits, 2, 8, "of an index: 2^bits values per layer");
             options.init = make(o, "init", "linear", centroid_inits(), "where k-means starts");
             options.iterations = o.integer("iterations", options.iterations, 0, INT64_MAX, "of k-means, at most");
             options.storage = o.choice("storage", options.storage, {"indices", "weights"},
                                        "float32 weights that deflate well, or bytes that are expanded in every call");
             read_layer_options(o, options);
             return codebook_sharing(options);
         }},
        {"quantize.dynamic", "int8 weights, activations rounded to int8 in each call; no data needed",
         [](Options& o) {
             DynamicOptions options;
             options.linear = o.boolean("linear", options.linear, "linear layers and products with a parameter");
             options.recurrent = o.boolean("recurrent", options.recurrent, "LSTM and GRU");
             options.embedding =
                 o.choice("embedding", options.embedding, {"float", "int4", "int8"}, "rows of embeddings");
             read_layer_options(o, options);
             return dynamic_int8(options);
         }},
        {"quantize.mixed", "the precision of each layer by its sensitivity, under a budget of size, bops or time",
         [](Options& o) {
             MixedOptions options;
             options.precisions =
                 o.texts("precisions", options.precisions, "beside float: bf16, dynamic, fp16, int4, int8, static");
             options.sensitivity = make(o, "sensitivity", "kl", sensitivities(), "what a precision is judged by");
             options.allocation = make(o, "allocation", "exact", precision_allocations(), "how precisions are chosen");
             options.rounding = make(o, "rounding", "nearest", roundings(), "how weights are rounded");
             options.budget = o.choice("budget", options.budget, {"bops", "latency", "size"},
                                       "bytes of weights, bit operations, or measured time");
             options.ratio =
                 o.number_in("ratio", options.ratio, 0, 1, "share of float's cost to stay within; 0: the cheapest");
             options.examples = o.integer("examples", options.examples, 1, INT64_MAX, "on which errors are measured");
             read_layer_options(o, options);
             return mixed_precision(options);
         }},
        {"quantize.static", "int8 weights and activations, ranges from calibration data (arXiv 1712.05877)",
         [](Options& o) {
             StaticOptions options;
             options.observer = make(o, "observer", "histogram", observers(), "how ranges of activations are found");
             options.per_channel =
                 o.boolean("per_channel", options.per_channel, "one scale per output channel of a weight");
             options.symmetric = o.boolean("symmetric", options.symmetric,
                                           "activations of both signs have their zero in the middle, at 128");
             options.batches = o.integer("batches", options.batches, 1, INT64_MAX, "calibration batches, at most");
             options.batch_size = o.integer("batch_size", options.batch_size, 1, INT64_MAX, "examples in each");
             options.ignore = o.texts("ignore", {}, "regular expressions: layers that stay in float");
             options.first_last = o.choice("first_last", "int8", {"float", "int8"},
                                           "the first and the last layer with weights") == "int8";
             options.min_sqnr_db = o.number("min_sqnr_db", options.min_sqnr_db,
                                            "layers with a lower signal-to-noise ratio stay in float");
             options.engine = o.choice("engine", options.engine, {"auto", "fbgemm", "onednn", "qnnpack", "x86"},
                                       "int8 kernels to prepare for; auto measures");
             options.linear = o.choice("linear", options.linear, {"auto", "fused", "packed"},
                                       "linear layers between float ones: oneDNN's with the activation inside, packed "
                                       "when the file is loaded, or LibTorch's quantized:: ones; auto measures");
             options.conv = o.choice("conv", options.conv, {"auto", "fused", "fused_large", "packed"},
                                     "convolutions before SiLU, hard-swish or a residual addition, and depthwise ones: "
                                     "oneDNN's with these inside, all or the large ones, or LibTorch's quantized:: "
                                     "ones; auto measures");
             options.reduce_range = o.choice("reduce_range", options.reduce_range, {"auto", "off", "on"},
                                             "weights of 7 bits, whose products cannot saturate on CPUs without VNNI; "
                                             "auto: by this CPU");
             options.rounding = make(o, "rounding", "nearest", roundings(), "how weights are rounded");
             options.weight_bits =
                 o.integer("weight_bits", options.weight_bits, 2, 8, "of the weights; fewer than 8 still run in int8");
             options.fit_weights = o.boolean("fit_weights", options.fit_weights,
                                             "scales with the least error of the weights, not their whole range");
             options.in_turn =
                 o.boolean("in_turn", options.in_turn, "each layer is rounded on what the int8 layers before it give");
             options.bias_correction =
                 o.boolean("bias_correction", options.bias_correction, "the mean error of weights goes into the bias");
             options.equalize =
                 o.boolean("equalize", options.equalize, "equal ranges across neighbouring layers (arXiv 1906.04721)");
             options.equalize_relu6 =
                 o.choice("equalize_relu6", options.equalize_relu6, {"calibrated", "keep", "relu"},
                          "ReLU6 between two layers: keep leaves the pair; relu replaces it, which "
                          "changes the function; calibrated leaves the calibration data's outputs");
             options.smooth = o.number("smooth", options.smooth, "SmoothQuant's alpha (arXiv 2211.10438); 0: off");
             options.smooth_norms = o.choice("smooth_norms", options.smooth_norms, {"all", "free", "gain"},
                                             "gain: layer norms behind which noise falls, by 1 dB where something else "
                                             "reads them and is multiplied back; free: those that only linear layers "
                                             "read; or all");
             options.synthetic.examples = o.integer("synthetic_examples", options.synthetic.examples, 1, INT64_MAX,
                                                    "made from batch norms where there are no data (arXiv 2001.00281)");
             options.synthetic.steps =
                 o.integer("synthetic_steps", options.synthetic.steps, 1, INT64_MAX, "of learning them");
             options.fallback = fallback_of(o);
             return static_int8(options);
         }},
        {"quantize.weight_only", "weights in int8, int4 or half precision, activations in float",
         [](Options& o) {
             WeightOnlyOptions options;
             options.type = o.choice("type", options.type, {"bf16", "fp16", "int4", "int8"}, "of the weights");
             options.group = o.integer("group", options.group, 0, 128,
                                       "weights that share a scale: 32, 64, 128; 0: 64 for int4, rows for int8");
             options.kernel = o.choice("kernel", options.kernel, {"auto", "packed", "unpacked"},
                                       "packed: bfloat16 kernels for few rows; unpacked: float32, any CPU");
             // LibTorch's packed int8 kernel has no offsets.
             options.symmetric = o.boolean("symmetric", options.type == "int8" && options.kernel != "unpacked",
                                           "no offset beside the scale; int8 for a packed kernel is symmetric");
             options.rounding = make(o, "rounding", "nearest", roundings(), "how weights are rounded");
             options.convolutions = o.boolean("convolutions", options.convolutions, "treat convolutions");
             options.embeddings = o.boolean("embeddings", options.embeddings, "treat embeddings");
             read_layer_options(o, options);
             return weight_only(options);
         }},
    };
    return table;
}

}  // namespace coppice::quantize
