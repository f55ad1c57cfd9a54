// What each quantizing stage makes is loaded and run by a program that links LibTorch alone, which gets the bits that
// Coppice gave.
#include <coppice/qat.h>
#include <coppice/quantize.h>
#include <torch/serialize.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "support/support.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

class Files {
public:
    /// @param error  added to what the model gives
    void add(const std::string& name, const Model& model, const Inputs& inputs, std::string engine = "x86",
             double error = 0) {
        torch::NoGradGuard no_grad;
        const auto path = folder_ / name;
        model.save(path.string() + ".pt");
        const auto before = quantize::engine();
        set_engine(engine);
        const auto output = first_tensor(model.forward(inputs)) + error;
        set_engine(before);
        c10::impl::GenericList list(c10::AnyType::get());
        for (const auto& input : inputs) list.push_back(input);
        const auto bytes = torch::pickle_save(c10::ivalue::Tuple::create({c10::IValue(list), c10::IValue(output)}));
        std::ofstream(path.string() + ".data", std::ios::binary)
            .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
        std::transform(engine.begin(), engine.end(), engine.begin(), [](unsigned char c) { return std::toupper(c); });
        command_ += " '" + path.string() + ".pt' '" + path.string() + ".data' " + engine;
        ++count_;
    }
    /// What the program printed, its exit code behind it.
    std::string run() const {
        const auto log = folder_ / "log";
        const int code = std::system((STOCK_LIBTORCH + command_ + " > '" + log.string() + "' 2>&1").c_str());
        std::ifstream file(log);
        return std::string(std::istreambuf_iterator<char>(file), {}) + "code " + std::to_string(code);
    }
    int count() const { return count_; }

private:
    TemporaryFolder folder_;
    std::string command_;
    int count_ = 0;
};

Context context_of(const at::Tensor& inputs) {
    Context context;
    context.example = {inputs.slice(0, 0, 2)};
    context.data.train = context.data.calibration =
        tensor_dataset({inputs}, at::arange(inputs.size(0)).remainder(10), "sine");
    return context;
}

Model encoder() {
    return build_model(
        {{"a.weight", sine({64, 32}, 0.2)}, {"a.bias", sine({64}, 0.1)}, {"b.weight", sine({32, 64}, 0.1)}},
        "def forward(self, x):\n"
        "    y = torch.gelu(torch.linear(x, self.a.weight, self.a.bias))\n"
        "    return torch.softmax(torch.linear(y, self.b.weight), -1)\n");
}

Model recurrent() {
    return build_model({{"e.weight", sine({20, 12}, 0.5)},
                        {"r.wi", sine({48, 12}, 0.3)},
                        {"r.wh", sine({48, 16}, 0.25)},
                        {"r.bi", sine({48}, 0.1)},
                        {"r.bh", sine({48}, 0.2)}},
                       "def forward(self, words):\n"
                       "    x = torch.embedding(self.e.weight, words)\n"
                       "    h = torch.zeros(1, x.size(0), 16)\n"
                       "    y, n = torch.gru(x, h, [self.r.wi, self.r.wh, self.r.bi, self.r.bh], True, 1, 0.0, False, "
                       "False, True)\n"
                       "    return y\n");
}

TEST(StockLibTorch, GivesTheBitsOfEveryQuantizingStage) {
    Files files;
    const Inputs image{sine({3, 3, 8, 8}, 1.1)}, row{sine({4, 32}, 0.9)};
    const auto images = (at::arange(32 * 3 * 8 * 8, at::kDouble) * 0.7).sin().to(at::kFloat).reshape({32, 3, 8, 8});
    const auto rows = sine({32, 32}, 1.5);

    for (const std::string kind : {"auto", "fused", "brecq", "four"}) {
        StaticOptions options;
        options.min_sqnr_db = 0;
        const bool fused = kind == "fused";
        if (kind == "auto") options.engine = "auto";
        if (fused) options.linear = "fused";
        options.conv = kind == "brecq" ? "fused" : "packed";
        if (kind == "brecq") options.rounding = brecq({5, 8, "mse"});
        if (kind == "four") options.weight_bits = 4;
        auto context = context_of(fused ? rows : images);
        const auto int8 = static_int8(options)->apply(fused ? encoder() : residual_model(), context);
        files.add("static_" + kind, int8, fused ? row : image, context.facts["engine"].get<std::string>());
    }
    {
        auto context = context_of(rows);
        files.add("dynamic_linear", dynamic_int8()->apply(encoder(), context), row);
        context.example = {at::arange(10).reshape({2, 5})};
        context.data = {};
        DynamicOptions options;
        files.add("dynamic_gru", dynamic_int8(options)->apply(recurrent(), context), context.example);
        options.embedding = "int4";
        files.add("dynamic_gru4", dynamic_int8(options)->apply(recurrent(), context), context.example);
    }
    for (const std::string type : {"int8", "int4", "bf16", "fp16"})
        for (const std::string kernel : {"packed", "unpacked"}) {
            if (kernel == "packed" && type != "int8" && type != "int4") continue;
            WeightOnlyOptions options;
            options.type = type;
            options.kernel = kernel;
            options.symmetric = type == "int8";
            options.group = type == "int4" ? 32 : 0;
            options.min_sqnr_db = 0;
            auto context = context_of(rows);
            files.add("weight_only_" + type + "_" + kernel, weight_only(options)->apply(encoder(), context), row);
        }
    for (const std::string storage : {"weights", "indices"}) {
        CodebookOptions options;
        options.storage = storage;
        auto context = context_of(images);
        files.add("codebook_" + storage, codebook_sharing(options)->apply(residual_model(), context), image);
    }
    {
        MixedOptions options;
        options.min_sqnr_db = 0;
        auto context = context_of(images);
        files.add("mixed", mixed_precision(options)->apply(residual_model(), context), image);
    }
    for (const std::string form : {"dynamic", "static"}) {
        AutoOptions options;
        options.forms = {form};
        options.timer = [](const Model& model, const Inputs&) {  // what is not float costs nothing
            double sum = 0;
            for (const auto* node : all_nodes(*model.graph()))
                sum += node->kind() == torch::jit::aten::linear || node->kind() == torch::jit::aten::conv2d;
            return sum;
        };
        const bool whole = form == "static";
        auto context = context_of(whole ? images : rows);
        files.add("auto_" + form, auto_precision(options)->apply(whole ? residual_model() : encoder(), context),
                  whole ? image : row);
    }
    for (const int64_t bits : {8, 4}) {
        QatOptions options;
        options.weight_bits = options.activation_bits = bits;
        const auto training = prepare(residual_model(), image, std::vector<Inputs>{image}, options);
        files.add("qat_" + std::to_string(bits), convert(training), image);
    }
    // Behind what LibTorch says of its quantized types.
    EXPECT_THAT(files.run(),
                ::testing::EndsWith(std::to_string(files.count()) + " models give the same output\ncode 0"));
}

TEST(StockLibTorch, SaysWhichModelGivesAnotherOutput) {
    Files files;
    const Inputs row{sine({4, 32}, 0.9)};
    files.add("same", encoder(), row);
    files.add("other", encoder(), row, "x86", 1);
    const auto said = files.run();
    EXPECT_THAT(said, ::testing::HasSubstr("other.pt: another output, by up to 1\n1 models give the same output"));
    EXPECT_THAT(said, ::testing::Not(::testing::HasSubstr("code 0")));
}

}  // namespace
}  // namespace coppice::quantize
