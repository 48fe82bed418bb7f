// The differences between torch's versions in C++: before 2.13 shared_ptrs own the nodes of the autograd graph.
#pragma once
#include <torch/csrc/autograd/function.h>
#include <torch/version.h>

namespace {

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 13
template <class T>
std::shared_ptr<T> make_node() {
  return {new T, torch::autograd::deleteNode};
}
std::shared_ptr<torch::autograd::Node> pointer_to(torch::autograd::Node* node) { return node->getptr(); }
#else
template <class T>
c10::intrusive_ptr<T> make_node() {
  return c10::make_intrusive<T>();
}
c10::intrusive_ptr<torch::autograd::Node> pointer_to(torch::autograd::Node* node) {
  return c10::intrusive_ptr<torch::autograd::Node>::reclaim_copy(node);
}
#endif

}  // namespace
