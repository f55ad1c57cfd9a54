#include "support/support.h"

#include "recipe.h"

namespace coppice::cli {
namespace {

TEST(Yaml, KeepsThePlaceOfEveryValueAndKey) {
    const auto root =
        parse_yaml("model:\n  path: a.pt\nstages:\n  - prune.channel: {ratio: 0.5}\n  - deploy\n", "r.yaml");
    EXPECT_EQ(root.find("model")->where, "r.yaml line 1, column 1");
    EXPECT_EQ(root.find("model")->find("path")->where, "r.yaml line 2, column 3");
    const auto& stages = *root.find("stages");
    EXPECT_EQ(stages.items[0].where, "r.yaml line 4, column 5");
    EXPECT_EQ(stages.items[0].find("prune.channel")->find("ratio")->where, "r.yaml line 4, column 21");
    EXPECT_EQ(stages.items[1].where, "r.yaml line 5, column 5");
    EXPECT_EQ(to_json(root).dump(),
              R"({"model":{"path":"a.pt"},"stages":[{"prune.channel":{"ratio":"0.5"}},"deploy"]})");
}

TEST(Yaml, TellsNullFromText) {
    const auto root = parse_yaml("a:\nb: ~\nc: null\nd: 'null'\ne: ''\n", "r");
    EXPECT_EQ(root.find("a")->kind, Setting::Kind::kNull);
    EXPECT_EQ(root.find("b")->kind, Setting::Kind::kNull);
    EXPECT_EQ(root.find("c")->kind, Setting::Kind::kNull);
    EXPECT_EQ(root.find("d")->kind, Setting::Kind::kScalar);
    EXPECT_TRUE(root.find("d")->quoted);
    EXPECT_EQ(root.find("e")->kind, Setting::Kind::kScalar);
}

TEST(Yaml, AKeyGivenTwiceIsAnErrorWithBothPlaces) {
    EXPECT_ERROR(parse_yaml("a: 1\nb: 2\na: 3\n", "r.yaml"), InvalidArgument,
                 "r.yaml line 3, column 1: \"a\" is given twice, first at line 1, column 1. Remove one of them.");
    EXPECT_ERROR(parse_yaml("x: {a: 1, a: 2}\n", "r.yaml"), InvalidArgument,
                 "r.yaml line 1, column 11: \"a\" is given twice");
}

TEST(Yaml, SyntaxErrorsHaveLineAndColumn) {
    EXPECT_ERROR(parse_yaml("a: [1, 2\nb: 3\n", "r.yaml"), InvalidArgument, "r.yaml line 2, column");
    EXPECT_ERROR(parse_yaml("a: 1\n\tb: 2\n", "r.yaml"), InvalidArgument, "r.yaml line 2, column");
    EXPECT_ERROR(parse_yaml("a: \"\\q\"\n", "r.yaml"), InvalidArgument, "not valid YAML");
    EXPECT_ERROR(parse_yaml("a: 1\n b: 2\n", "r.yaml"), InvalidArgument, "r.yaml line 2, column");
    EXPECT_ERROR(parse_yaml("a: *nothing\n", "r.yaml"), InvalidArgument, "r.yaml line 1, column");
}

TEST(Yaml, KeysMustBeTexts) {
    EXPECT_ERROR(parse_yaml("? [1, 2]\n: x\n", "r.yaml"), InvalidArgument, "a key must be a text");
    EXPECT_ERROR(parse_yaml("~: x\n", "r.yaml"), InvalidArgument, "a key must be a text");
}

TEST(Yaml, OneDocumentOnly) {
    EXPECT_ERROR(parse_yaml("a: 1\n---\nb: 2\n", "r.yaml"), InvalidArgument, "a second document begins");
    EXPECT_EQ(to_json(parse_yaml("---\na: 1\n...\n", "r.yaml")).dump(), R"({"a":"1"})");
}

TEST(Yaml, BinaryFilesAreNamedAsSuch) {
    EXPECT_ERROR(parse_yaml(std::string("PK\x03\x04 zip"), "model.pt"), InvalidArgument, "model.pt: is a binary file");
}

TEST(Yaml, AnchorsAreCopiedAndCannotGrowWithoutBound) {
    EXPECT_EQ(to_json(parse_yaml("a: &x {b: 1}\nc: *x\n", "r")).dump(), R"({"a":{"b":"1"},"c":{"b":"1"}})");
    std::string laughs = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n";
    for (char c = 'b'; c < 'k'; ++c) {
        laughs += std::string(1, c) + ": &" + c + " [";
        for (int i = 0; i < 10; ++i) laughs += std::string(i ? ", *" : "*") + static_cast<char>(c - 1);
        laughs += "]\n";
    }
    EXPECT_ERROR(parse_yaml(laughs, "r"), InvalidArgument, "more than 100,000 values");
}

TEST(Yaml, DeepNestingIsAnErrorNotACrash) {
    EXPECT_THROW(parse_yaml(std::string(20000, '['), "r"), InvalidArgument);
}

TEST(Yaml, WhatIsWrittenReadsBackTheSame) {
    const Json value = {
        {"base", "/home/a b/x"},
        {"seed", 0},
        {"text", "yes"},
        {"odd", "a: b # c"},
        {"quote", "say \"no\"\nline"},
        {"minus", "-x"},
        {"brace", "{a}"},
        {"empty", ""},
        {"star", "*"},
        {"nothing", nullptr},
        {"pattern", "layer[0-9].*\\.conv"},
        {"list", {1, 2.5, "a, b", "c"}},
        {"none", Json::array()},
        {"map", Json::object()},
        {"inputs", {"float32:1,3,32,32", "int64<10:1,4"}},
        {"stages",
         {{{"prune.channel", {{"ratio", 0.5}, {"ignore", {"fc"}}}}}, "deploy", {{"x", {{"y", {{"z", 1}}}}}}}}};
    std::function<Json(const Json&)> as_texts = [&](const Json& json) -> Json {  // numbers come back as their text
        if (json.is_object() || json.is_array()) {
            Json copy = json;
            for (auto& item : copy) item = as_texts(item);
            return copy;
        }
        return json.is_string() || json.is_null() ? json : Json(json.dump());
    };
    const auto text = to_yaml(value);
    EXPECT_EQ(to_json(parse_yaml(text, "r")).dump(1), as_texts(value).dump(1)) << text;
}

TEST(Override, ReachesOptionsOfAStageWithAndWithoutItsName) {
    auto root = parse_yaml("stages:\n  - prune.channel: {ratio: 0.5}\n  - deploy\n", "r");
    apply_override(root, "stages.0.ratio=0.3");
    EXPECT_EQ(root.find("stages")->items[0].find("prune.channel")->find("ratio")->text, "0.3");
    apply_override(root, "stages.0.prune.channel.ratio=0.4");
    EXPECT_EQ(root.find("stages")->items[0].find("prune.channel")->find("ratio")->text, "0.4");
    apply_override(root, "stages.0.criterion={taylor: {batches: 2}}");
    EXPECT_EQ(
        root.find("stages")->items[0].find("prune.channel")->find("criterion")->find("taylor")->find("batches")->text,
        "2");
    apply_override(root, "stages.1.form=eager");
    EXPECT_EQ(root.find("stages")->items[1].find("deploy")->find("form")->text, "eager");
    apply_override(root, "measure.batch=[1, 32]");
    EXPECT_EQ(root.find("measure")->find("batch")->items.size(), 2u);
    EXPECT_EQ(root.find("measure")->find("batch")->where, "--set measure.batch");
}

TEST(Override, MistakesAreNamed) {
    auto root = parse_yaml("stages:\n  - deploy\nseed: 1\n", "r");
    EXPECT_ERROR(apply_override(root, "seed"), InvalidArgument, "--set seed: is no assignment");
    EXPECT_ERROR(apply_override(root, "stages.3.x=1"), InvalidArgument,
                 "--set stages.3.x: \"3\" is no position in a list of 1. Use 0 to 0.");
    EXPECT_ERROR(apply_override(root, "seed.x=1"), InvalidArgument, "is inside a value that is a text");
    EXPECT_ERROR(apply_override(root, "seed=[1"), InvalidArgument, "--set seed: \"[1\" is not valid YAML");
}

}  // namespace
}  // namespace coppice::cli
