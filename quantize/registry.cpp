#include <coppice/quantize.h>

namespace coppice::quantize {

const std::vector<Entry<Observer>>& observers() {
    static const std::vector<Entry<Observer>> table = {
        {"histogram", "the range with the least squared error over a histogram",
         [](Options& o) { return histogram(o.integer("bins", 2048, 128, 1 << 20, "bins of the histogram")); }},
        {"minmax", "smallest and largest value", [](Options&) { return minmax(); }},
        {"moving_average", "moving average of each batch's smallest and largest value",
         [](Options& o) { return moving_average(o.number("momentum", 0.1, "weight of the newest batch")); }},
    };
    return table;
}

const std::vector<Entry<Stage>>& stages() {
    static const std::vector<Entry<Stage>> table = {
        {"quantize.static", "int8 weights and activations, ranges from calibration data (arXiv 1712.05877)",
         [](Options& o) {
             StaticOptions options;
             options.observer = make(o, "observer", "histogram", observers(), "how ranges of activations are found");
             options.per_channel =
                 o.boolean("per_channel", options.per_channel, "one scale per output channel of a weight");
             options.batches = o.integer("batches", options.batches, 1, INT64_MAX, "calibration batches, at most");
             options.batch_size = o.integer("batch_size", options.batch_size, 1, INT64_MAX, "examples in each");
             options.ignore = o.texts("ignore", {}, "regular expressions: layers that stay in float");
             options.first_last = o.choice("first_last", "int8", {"float", "int8"},
                                           "the first and the last layer with weights") == "int8";
             options.min_sqnr_db = o.number("min_sqnr_db", options.min_sqnr_db,
                                            "layers with a lower signal-to-noise ratio stay in float");
             options.engine = o.choice("engine", options.engine, {"auto", "fbgemm", "onednn", "qnnpack", "x86"},
                                       "int8 kernels to prepare for; auto measures");
             options.activation_levels =
                 o.integer("activation_levels", 0, 0, 256, "256, 128 for CPUs without VNNI, 0: by this CPU");
             return static_int8(options);
         }},
    };
    return table;
}

}  // namespace coppice::quantize
