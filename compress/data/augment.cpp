// Random crops and mirror images: rows of pixels are copied straight to where they belong, without a padded copy or a
// tensor operation per image.
#include <coppice/data.h>
#include <coppice/error.h>

#include <cstring>

namespace coppice {
namespace {

at::Tensor checked(const at::Tensor& images, const char* where) {
    if (images.dim() != 4)
        throw InvalidArgument(where,
                              "images have " + std::to_string(images.dim()) + " dimensions, must be [N, C, H, W]",
                              "Switch it off for other data.");
    return images.cpu().contiguous();
}

}  // namespace

at::Tensor random_crop(const at::Tensor& images, int64_t padding, at::Generator generator) {
    const auto in = checked(images, "crop_padding");
    if (padding < 0) throw InvalidArgument("crop_padding", "is " + std::to_string(padding), "It must be at least 0.");
    const int64_t n = in.size(0), channels = in.size(1), height = in.size(2), width = in.size(3);
    if (padding == 0 || in.numel() == 0) return in.clone();
    // Row y of the result is row y + shift_y of the image, zero outside of it; shifts are -padding .. padding.
    const auto shifts = at::randint(-padding, padding + 1, {n, 2}, generator, at::TensorOptions(at::kLong));
    const auto* shift = shifts.data_ptr<int64_t>();
    auto out = at::zeros_like(in);
    const auto element = static_cast<int64_t>(in.element_size());
    const auto* source = static_cast<const char*>(in.const_data_ptr());
    auto* target = static_cast<char*>(out.mutable_data_ptr());
    for (int64_t i = 0; i < n; ++i) {
        const int64_t dy = shift[2 * i], dx = shift[2 * i + 1];
        const int64_t first_row = std::max<int64_t>(0, -dy), last_row = std::min(height, height - dy);
        const int64_t first_column = std::max<int64_t>(0, -dx), columns = width - std::abs(dx);
        if (columns <= 0) continue;
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t y = first_row; y < last_row; ++y) {
                const int64_t plane = (i * channels + c) * height;
                std::memcpy(target + ((plane + y) * width + first_column) * element,
                            source + ((plane + y + dy) * width + first_column + dx) * element,
                            static_cast<size_t>(columns * element));
            }
    }
    return out.to(images.device());
}

at::Tensor random_flip(const at::Tensor& images, at::Generator generator) {
    const auto in = checked(images, "flip");
    const int64_t n = in.size(0), rows = in.size(1) * in.size(2), width = in.size(3);
    const auto choice = at::randint(0, 2, {n}, generator, at::TensorOptions(at::kLong));
    auto out = at::empty_like(in);
    const auto mirror = [&](auto tag) {
        using T = decltype(tag);
        const T* source = static_cast<const T*>(in.const_data_ptr());
        T* target = static_cast<T*>(out.mutable_data_ptr());
        for (int64_t i = 0; i < n; ++i, source += rows * width, target += rows * width) {
            if (choice.data_ptr<int64_t>()[i] == 0) {
                std::memcpy(target, source, static_cast<size_t>(rows * width) * sizeof(T));
                continue;
            }
            for (int64_t row = 0; row < rows; ++row)
                std::reverse_copy(source + row * width, source + (row + 1) * width, target + row * width);
        }
    };
    // Pixels are only moved: the width of an element is all that matters.
    switch (in.element_size()) {
        case 1:
            mirror(uint8_t{});
            break;
        case 2:
            mirror(uint16_t{});
            break;
        case 4:
            mirror(uint32_t{});
            break;
        case 8:
            mirror(uint64_t{});
            break;
        default:
            throw InvalidArgument("flip", "images are " + std::string(c10::toString(in.scalar_type())),
                                  "Use real numbers.");
    }
    return out.to(images.device());
}

}  // namespace coppice
