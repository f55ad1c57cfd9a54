// Static int8 alone on the eight real models: quality before and after, changed predictions, size, time.
//
//   int8_models DATA [NAME ...]     a Markdown table on standard output; DATA is the folder of the development data
//
// Both sides are saved files run by stock LibTorch: the float one frozen (torch::jit::freeze), the int8 one as it is,
// on the engine that LibTorch chooses by default. Calls alternate; the time ratio is the median over pairs. Calibration
// never sees a test example, but for Cora, which is one graph.
#include <ATen/Parallel.h>
#include <coppice/quantize.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/version.h>
#include <zlib.h>

#include <chrono>
#include <cstdio>
#include <ctime>
#include <iostream>
#include <numeric>
#include <thread>

namespace {

using namespace coppice;
namespace fs = std::filesystem;

constexpr int kThreads = 2;
constexpr int kPairs = 15;

std::vector<char> read_all(const fs::path& path) {  // gzip or plain
    gzFile file = gzopen(path.c_str(), "rb");
    if (!file) throw IoError(path.string(), "cannot be read", "");
    std::vector<char> bytes, chunk(1 << 20);
    for (int count; (count = gzread(file, chunk.data(), static_cast<unsigned>(chunk.size()))) > 0;)
        bytes.insert(bytes.end(), chunk.begin(), chunk.begin() + count);
    gzclose(file);
    return bytes;
}

at::Tensor bytes_of(const std::vector<char>& bytes, size_t skip, std::vector<int64_t> shape) {
    auto tensor = at::empty(shape, at::kByte);
    TORCH_CHECK(bytes.size() >= skip + static_cast<size_t>(tensor.numel()), "file too short");
    std::memcpy(tensor.data_ptr(), bytes.data() + skip, static_cast<size_t>(tensor.numel()));
    return tensor;
}

at::Tensor field(const fs::path& path, const std::string& name) {
    return torch::jit::pickle_load(read_all(path)).toGenericDict().at(name).toTensor();
}

/// One model with its data. Inputs of all test examples, cut into batches.
struct Workload {
    std::string name, data, metric;
    fs::path file;
    std::vector<Inputs> calibration, test;
    std::function<double(const at::Tensor& output)> quality;
    /// How far predictions moved, in words.
    std::function<std::string(const at::Tensor& before, const at::Tensor& after)> moved;
    std::vector<Inputs> timed;  ///< one entry per batch size
};

std::vector<Inputs> batches(const at::Tensor& images, int64_t size) {
    std::vector<Inputs> all;
    for (const auto& batch : images.split(size)) all.push_back({batch.contiguous()});
    return all;
}

std::string text(const char* format, double value) {
    char buffer[64];
    std::snprintf(buffer, sizeof buffer, format, value);
    return buffer;
}

void classify(Workload& task, const at::Tensor& labels) {
    task.metric = "top-1 %";
    task.quality = [labels](const at::Tensor& output) {
        return 100 * output.argmax(1).eq(labels).to(at::kDouble).mean().item<double>();
    };
    task.moved = [](const at::Tensor& a, const at::Tensor& b) {
        return text("%.2f %% ", 100 * a.argmax(1).ne(b.argmax(1)).to(at::kDouble).mean().item<double>()) + "of classes";
    };
}

Workload resnet20(const fs::path& data) {
    const auto read = [&](const char* name, int64_t count) {
        const auto rows = bytes_of(read_all(data / "cifar10" / name), 0, {count, 3073});
        const auto mean = at::tensor({0.485f, 0.456f, 0.406f}).reshape({1, 3, 1, 1});
        const auto deviation = at::tensor({0.229f, 0.224f, 0.225f}).reshape({1, 3, 1, 1});
        return std::make_pair((rows.slice(1, 1).reshape({count, 3, 32, 32}).to(at::kFloat) / 255 - mean) / deviation,
                              rows.select(1, 0).to(at::kLong));
    };
    Workload task{"cifar10/resnet20",
                  "CIFAR-10 (JPEG copy), 10,000 images",
                  "",
                  data / "cifar10/resnet20.pt",
                  {},
                  {},
                  {},
                  {},
                  {}};
    const auto test = read("test.bin", 10000);
    task.calibration = batches(read("train.bin", 512).first, 64);
    task.test = batches(test.first, 250);
    task.timed = {{test.first.slice(0, 0, 1)}, {test.first.slice(0, 0, 128)}};
    classify(task, test.second);
    return task;
}

Workload fashion(const fs::path& data, const std::string& model) {
    Workload task{
        "fashion/" + model, "Fashion-MNIST, 10,000 images", "", data / "fashion" / (model + ".pt"), {}, {}, {}, {}, {}};
    const auto images =
        bytes_of(read_all(data / "fashion/t10k-images-idx3-ubyte"), 16, {10000, 1, 28, 28}).to(at::kFloat) / 255;
    const auto labels = bytes_of(read_all(data / "fashion/t10k-labels-idx1-ubyte"), 8, {10000}).to(at::kLong);
    const fs::path train =
        "/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz";  // Debian: dataset-fashion-mnist
    if (!fs::exists(train)) throw IoError(train.string(), "is absent", "Install the package dataset-fashion-mnist.");
    task.calibration = batches(bytes_of(read_all(train), 16, {512, 1, 28, 28}).to(at::kFloat) / 255, 64);
    task.test = batches(images, 500);
    task.timed = {{images.slice(0, 0, 1)}, {images.slice(0, 0, 128)}};
    classify(task, labels);
    return task;
}

Workload digits(const fs::path& data) {
    Workload task{"digits/mlp", "digits, last 500 images", "", data / "digits/mlp.pt", {}, {}, {}, {}, {}};
    const auto images = field(data / "digits/digits.pt", "image").to(at::kFloat);
    const auto labels = field(data / "digits/digits.pt", "label").to(at::kLong);
    task.calibration = batches(images.slice(0, 0, 512), 64);
    task.test = batches(images.slice(0, 1297), 250);
    task.timed = {{images.slice(0, 0, 1)}, {images.slice(0, 0, 128)}};
    classify(task, labels.slice(0, 1297));
    return task;
}

Workload speech(const fs::path& data) {
    Workload task{"fsdd/cnn_gru", "spoken digits, 300 clips", "", data / "fsdd/cnn_gru.pt", {}, {}, {}, {}, {}};
    const auto read = [&](const char* name) {
        return (field(data / "fsdd" / name, "waveform").to(at::kFloat) / 32768).unsqueeze(1);
    };
    const auto test = read("test.pt");
    task.calibration = batches(read("train.pt"), 50);
    task.test = batches(test, 50);
    task.timed = {{test.slice(0, 0, 1)}, {test.slice(0, 0, 32)}};
    classify(task, field(data / "fsdd/test.pt", "label").to(at::kLong));
    return task;
}

at::Tensor ranks(const at::Tensor& values) {  // ties share the mean of their ranks
    const auto v = values.to(at::kDouble).contiguous();
    const auto less = v.unsqueeze(0).lt(v.unsqueeze(1)).sum(1), same = v.unsqueeze(0).eq(v.unsqueeze(1)).sum(1);
    return less.to(at::kDouble) + (same.to(at::kDouble) - 1) / 2;
}

Workload sentences(const fs::path& data) {
    Workload task{"stsb/minilm_l6", "STS-B, 750 pairs", "Spearman", data / "stsb/minilm_l6.pt", {}, {}, {}, {}, {}};
    const auto read = [&](const char* name, int64_t pairs, int64_t size) {
        std::vector<Inputs> all;
        const auto ids = field(data / "stsb" / name, "ids").to(at::kLong).slice(0, 0, pairs);
        for (const auto& batch : ids.reshape({-1, ids.size(2)}).split(size))
            all.push_back({batch.contiguous(), batch.gt(0).to(at::kLong)});
        return all;
    };
    const auto score = field(data / "stsb/test.pt", "score");
    task.calibration = read("train.pt", 256, 64);
    task.test = read("test.pt", 750, 50);
    for (const int64_t size : {1, 8}) {
        Inputs inputs;
        for (const auto& input : task.test[0]) inputs.push_back(input.toTensor().slice(0, 0, size).contiguous());
        task.timed.push_back(inputs);
    }
    const auto similarity = [](const at::Tensor& output) {
        const auto pairs = output.reshape({-1, 2, output.size(1)});
        return (pairs.select(1, 0) * pairs.select(1, 1)).sum(1);
    };
    task.quality = [=](const at::Tensor& output) {
        const auto a = ranks(similarity(output)), b = ranks(score);
        return ((a - a.mean()) * (b - b.mean())).mean().item<double>() / (a.std(false) * b.std(false)).item<double>();
    };
    task.moved = [=](const at::Tensor& a, const at::Tensor& b) {
        return text("%.4f", (similarity(a) - similarity(b)).abs().mean().item<double>()) + " mean change of similarity";
    };
    return task;
}

Workload forecast(const fs::path& data) {
    Workload task{"etth1/light_ts", "ETTh1, 2,785 windows", "MSE", data / "etth1/light_ts.pt", {}, {}, {}, {}, {}};
    const auto bytes = read_all(data / "etth1/ETTh1.csv");
    std::istringstream lines(std::string(bytes.begin(), bytes.end()));
    std::string line;
    std::getline(lines, line);
    std::vector<float> values;
    while (std::getline(lines, line)) {
        std::istringstream cells(line);
        std::string cell;
        std::getline(cells, cell, ',');
        while (std::getline(cells, cell, ',')) values.push_back(std::stof(cell));
    }
    auto series = at::tensor(values).reshape({-1, 7});
    const auto fit = series.slice(0, 0, 8640);
    series = (series - fit.mean(0)) / fit.std(0, /*unbiased=*/false);
    const auto windows = [&](int64_t first, int64_t last, int64_t step) {
        std::vector<at::Tensor> inputs, targets;
        for (int64_t row = first; row + 96 <= last; row += step) {
            inputs.push_back(series.slice(0, row - 96, row));
            targets.push_back(series.slice(0, row, row + 96));
        }
        return std::make_pair(at::stack(inputs), at::stack(targets));
    };
    const auto test = windows(11520, 14400, 1);
    task.calibration = batches(windows(96, 8640, 17).first, 64);
    task.test = batches(test.first, 250);
    task.timed = {{test.first.slice(0, 0, 1)}, {test.first.slice(0, 0, 32)}};
    task.quality = [target = test.second](const at::Tensor& output) {
        return (output - target).pow(2).mean().item<double>();
    };
    task.moved = [](const at::Tensor& a, const at::Tensor& b) {
        return text("%.4f", (a - b).pow(2).mean().item<double>()) + " mean squared change of the forecast";
    };
    return task;
}

Workload citations(const fs::path& data) {
    Workload task{"cora/gcn", "Cora, 1,000 nodes", "", data / "cora/gcn.pt", {}, {}, {}, {}, {}};
    const auto graph = data / "cora/graph.pt";
    const Inputs inputs{field(graph, "x"), field(graph, "edges"), field(graph, "weight")};
    task.calibration = task.test = task.timed = {inputs};
    const auto nodes = field(graph, "test").to(at::kLong);
    classify(task, field(graph, "y").to(at::kLong).index_select(0, nodes));
    const auto quality = task.quality;
    const auto moved = task.moved;
    task.quality = [=](const at::Tensor& output) { return quality(output.index_select(0, nodes)); };
    task.moved = [=](const at::Tensor& a, const at::Tensor& b) {
        return moved(a.index_select(0, nodes), b.index_select(0, nodes));
    };
    return task;
}

at::Tensor run(torch::jit::Module& module, const std::vector<Inputs>& all) {
    std::vector<at::Tensor> outputs;
    for (const auto& inputs : all) outputs.push_back(module.forward(inputs).toTensor());
    return at::cat(outputs);
}

enum class Clock { kThreadCpu, kWall };

double now(Clock clock) {
    timespec time{};
    clock_gettime(clock == Clock::kWall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double seconds(torch::jit::Module& module, const Inputs& inputs, int runs, Clock clock) {
    const double start = now(clock);
    for (int i = 0; i < runs; ++i) module.forward(inputs);
    return (now(clock) - start) / runs;
}

double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
    return values[values.size() / 2];
}

/// "1.23 / 0.45 ms (2.7x)": least times of both and the median ratio of pairs.
std::string compare(torch::jit::Module& before, torch::jit::Module& after, const Inputs& inputs, Clock clock) {
    at::set_num_threads(clock == Clock::kWall ? kThreads : 1);
    for (int i = 0; i < 3; ++i) {
        seconds(before, inputs, 1, clock);
        seconds(after, inputs, 1, clock);
    }
    const int runs = std::clamp(static_cast<int>(0.02 / seconds(before, inputs, 1, clock)), 1, 200);
    std::vector<double> ratios, a, b;
    for (int i = 0; i < kPairs; ++i) {
        a.push_back(seconds(before, inputs, runs, clock));
        b.push_back(seconds(after, inputs, runs, clock));
        ratios.push_back(a.back() / b.back());
    }
    at::set_num_threads(kThreads);
    char buffer[96];
    std::snprintf(buffer, sizeof buffer, "%.3g / %.3g ms (%.2fx)", 1e3 * *std::min_element(a.begin(), a.end()),
                  1e3 * *std::min_element(b.begin(), b.end()), median(ratios));
    return buffer;
}

std::string cpu_model() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
    return "unknown";
}

void report(const Workload& task, std::string& details) {
    torch::NoGradGuard no_grad;
    const auto start = std::chrono::steady_clock::now();
    const auto model = Model::load(task.file);
    const auto plan = quantize::plan_static(model, task.timed[0], task.calibration);
    const auto int8 = quantize::convert(plan);
    const double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const auto folder = fs::temp_directory_path() / ("int8_models_" + std::to_string(::getpid()));
    fs::create_directories(folder);
    model.save(folder / "float.pt");
    int8.save(folder / "int8.pt");
    auto loaded = torch::jit::load((folder / "float.pt").string());
    loaded.eval();
    auto before = torch::jit::freeze(loaded);
    auto after = torch::jit::load((folder / "int8.pt").string());
    const auto a = run(before, task.test), b = run(after, task.test);
    int64_t int8_layers = 0, layers = 0;
    double worst = 1e9;
    std::map<std::string, std::string> kept;
    for (const auto& layer : plan.layers()) {
        layers += layer.parameters > 0;
        int8_layers += layer.int8 && layer.parameters > 0;
        if (layer.int8 && layer.parameters > 0) worst = std::min(worst, layer.sqnr_db);
        if (!layer.int8 && layer.reason.rfind("beside", 0) != 0) kept[layer.op] = layer.reason;
    }
    std::printf("| %s | %s | %s | %.4g | %.4g | %s | %lld of %lld | %.1f dB | %.0f / %.0f kB |", task.name.c_str(),
                task.data.c_str(), task.metric.c_str(), task.quality(a), task.quality(b), task.moved(a, b).c_str(),
                static_cast<long long>(int8_layers), static_cast<long long>(layers), worst,
                static_cast<double>(fs::file_size(folder / "float.pt")) / 1e3,
                static_cast<double>(fs::file_size(folder / "int8.pt")) / 1e3);
    for (const auto clock : {Clock::kThreadCpu, Clock::kWall}) {
        for (const auto& inputs : task.timed) std::printf(" %s |", compare(before, after, inputs, clock).c_str());
        if (task.timed.size() == 1) std::printf(" |");
    }
    std::printf(" %.1f s |\n", spent);
    std::fflush(stdout);
    details += "- " + task.name + ": ";
    if (kept.empty()) details += "nothing that matters";
    bool first = true;
    for (const auto& [op, reason] : kept) {
        details += (first ? "" : "; ") + op + " (" + reason + ")";
        first = false;
    }
    details += "\n";
    fs::remove_all(folder);
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 2) {
        std::fprintf(stderr, "usage: int8_models DATA [NAME ...]\n");
        return 2;
    }
    at::set_num_threads(kThreads);
    const fs::path data = arguments[1];
    const std::vector<std::string> wanted(arguments + 2, arguments + count);
    const std::vector<std::pair<std::string, std::function<Workload()>>> tasks = {
        {"cifar10/resnet20", [&] { return resnet20(data); }},  {"fashion/cnn", [&] { return fashion(data, "cnn"); }},
        {"fashion/mlp", [&] { return fashion(data, "mlp"); }}, {"digits/mlp", [&] { return digits(data); }},
        {"fsdd/cnn_gru", [&] { return speech(data); }},        {"stsb/minilm_l6", [&] { return sentences(data); }},
        {"etth1/light_ts", [&] { return forecast(data); }},    {"cora/gcn", [&] { return citations(data); }},
    };
    std::printf("%s, %d threads, LibTorch %s, engine %s\n\n", cpu_model().c_str(), kThreads, TORCH_VERSION,
                quantize::engine().c_str());
    double load[1] = {0};
    if (getloadavg(load, 1) == 1)
        std::printf(
            "Load average at the start: %.1f on %u cores. The wall times are those of a machine under that load.\n\n",
            load[0], std::thread::hardware_concurrency());
    std::string rule = "\n|";
    for (const char* column :
         {"model", "data", "metric", "float", "int8", "predictions moved", "int8 layers", "noisiest layer", "file",
          "CPU time, small batch", "CPU time, large batch", "wall, small batch", "wall, large batch", "quantizing"}) {
        std::printf("| %s ", column);
        rule += "---|";
    }
    std::printf("|%s\n", rule.c_str());
    std::string details;
    int failed = 0;
    for (const auto& [name, make] : tasks) {
        if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), name) == wanted.end()) continue;
        try {
            report(make(), details);
        } catch (const std::exception& error) {
            std::printf("| %s | failed: %s |\n", name.c_str(), message_of(error).c_str());
            ++failed;
        }
    }
    std::printf("\nLeft in float, and why:\n\n%s", details.c_str());
    return failed ? 1 : 0;
}
