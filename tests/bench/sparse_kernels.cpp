// Where a sparse weight is faster than a dense one: y = x W^T + b with W [out, in] and x [rows, in], dense, by linear()
// with a compressed-sparse-row weight, and in the form that prune.csr writes. CPU time on one thread, which other
// programs do not lengthen much. Prints the table of results/sparse_kernels.md.
#include <torch/types.h>

#include <cstdio>
#include <ctime>
#include <functional>

namespace {

double cpu_ms() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return 1e3 * static_cast<double>(now.tv_sec) + 1e-6 * static_cast<double>(now.tv_nsec);
}

// The fastest of 30 calls.
double fastest_ms(const std::function<at::Tensor()>& call) {
    double best = 1e9;
    for (int run = 0; run < 33; ++run) {
        const double start = cpu_ms();
        call();
        if (run >= 3) best = std::min(best, cpu_ms() - start);
    }
    return best;
}

}  // namespace

int main() {
    torch::NoGradGuard no_grad;
    at::set_num_threads(1);
    torch::manual_seed(0);
    std::printf("| weight | rows | zeros | dense, ms | linear(x, csr), ms | prune.csr, ms | ratio |\n");
    std::printf("| --- | --- | --- | --- | --- | --- | --- |\n");
    for (const auto& [out, in] :
         {std::pair{384, 384}, std::pair{1536, 384}, std::pair{384, 1536}, std::pair{1024, 1024}})
        for (const int rows : {1, 33, 256}) {
            const auto x = at::randn({rows, in}), bias = at::randn({out});
            for (const double zeros : {0.7, 0.8, 0.9, 0.95, 0.98}) {
                const auto weight = at::randn({out, in}) * (at::rand({out, in}) >= zeros);
                const auto csr = weight.to_sparse_csr();
                const double dense = fastest_ms([&] { return at::linear(x, weight, bias); });
                const double linear = fastest_ms([&] { return at::linear(x, csr, bias); });
                const double ours =
                    fastest_ms([&] { return at::addmm(bias.unsqueeze(1), csr, x.t()).t().contiguous(); });
                std::printf("| %d x %d | %d | %.2f | %.4f | %.4f | %.4f | %.2f |\n", out, in, rows, zeros, dense,
                            linear, ours, ours / dense);
                std::fflush(stdout);
            }
        }
}
