// Whether a function of a foreign header and our own declaration of it are called in the same way:
// as many parameters, each passed alike. For headers whose enums and structs ours stand for.
#ifndef KG_CONFORMANCE_SAME_ABI_H
#define KG_CONFORMANCE_SAME_ABI_H

#include <type_traits>

template <class A, class B> constexpr bool same_parameter() {
    if constexpr (std::is_pointer_v<A> || std::is_pointer_v<B>)
        return std::is_pointer_v<A> && std::is_pointer_v<B>;
    else
        return sizeof(A) == sizeof(B) && std::is_scalar_v<A> && std::is_scalar_v<B> &&
               std::is_floating_point_v<A> == std::is_floating_point_v<B>;
}

template <class A, class B> struct same_abi : std::false_type {};
template <class RA, class... A, class RB, class... B> struct same_abi<RA (*)(A...), RB (*)(B...)> {
    static constexpr bool parameters() {
        if constexpr (sizeof...(A) == sizeof...(B))
            return (same_parameter<A, B>() && ...);
        else
            return false;
    }
    static constexpr bool value = same_parameter<RA, RB>() && parameters();
};

#endif
