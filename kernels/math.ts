/**
 * Elementary functions in WGSL. The language's own are allowed errors that grow with the argument (exp: 3 + 2|x| units
 * in the last place) and drivers use them; these keep to a few units everywhere. Polynomials are minimax fits of the
 * Cephes library (S. Moshier), range reduction is Cody and Waite's.
 */

/** A function's text and the functions that it calls. */
interface Text {
  readonly needs?: readonly string[];
  readonly text: string;
}

/** `y` = 2^r for |r| ≤ ½. */
const exp2Near0 = `  var p = fma(r, 1.535336188319500e-4, 1.339887440266574e-3);
  p = fma(p, r, 9.618437357674640e-3);
  p = fma(p, r, 5.550332471162809e-2);
  p = fma(p, r, 2.402264791363012e-1);
  p = fma(p, r, 6.931472028550421e-1);
  let y = fma(p, r, 1.0);`;

const functions: Readonly<Record<string, Text>> = {
  // A constant infinity or NaN is an error in WGSL; a private variable is not a constant.
  ft_inf: {
    text: `var<private> ft_inf_bits: u32 = 0x7f800000u; fn ft_inf() -> f32 { return bitcast<f32>(ft_inf_bits); }`,
  },
  ft_nan: {
    text: `var<private> ft_nan_bits: u32 = 0x7fc00000u; fn ft_nan() -> f32 { return bitcast<f32>(ft_nan_bits); }`,
  },
  ft_is_nan: { text: `fn ft_is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }` },
  ft_exp: {
    needs: ["ft_inf", "ft_is_nan"],
    text: `
fn ft_exp(x: f32) -> f32 {
  let c = clamp(x, -104.0, 89.0);
  let n = round(c * 1.44269504);
  let k = i32(n);
  var r = fma(n, -0.693359375, c);
  r = fma(f32(k), 2.12194440e-4, r); // by way of i32, or a driver adds the two halves of log 2 up again
  var p = fma(r, 1.9875691500e-4, 1.3981999507e-3);
  p = fma(p, r, 8.3334519073e-3);
  p = fma(p, r, 4.1665795894e-2);
  p = fma(p, r, 1.6666665459e-1);
  p = fma(p, r, 5.0000001201e-1);
  let y = fma(r, fma(p, r, 1.0), 1.0); // as p·r² + r + 1 a driver may add r to 1 first, which costs a bit
  let half = k / 2;
  let rest = k - half;
  let scaled = y * bitcast<f32>(u32(half + 127) << 23u) * bitcast<f32>(u32(rest + 127) << 23u);
  if (ft_is_nan(x)) { return x; }
  return select(select(scaled, ft_inf(), x > 88.72283905), 0.0, x < -103.98);
}`,
  },
  ft_exp2: {
    needs: ["ft_inf", "ft_is_nan"],
    text: `
fn ft_exp2(x: f32) -> f32 {
  let c = clamp(x, -151.0, 129.0);
  let n = round(c);
  let r = c - n;
${exp2Near0}
  let half = i32(n) / 2;
  let rest = i32(n) - half;
  let scaled = y * bitcast<f32>(u32(half + 127) << 23u) * bitcast<f32>(u32(rest + 127) << 23u);
  if (ft_is_nan(x)) { return x; }
  return select(select(scaled, ft_inf(), x >= 128.0), 0.0, x < -150.0);
}`,
  },
  // What a + b lost when it was rounded to `sum`, exactly (Knuth's TwoSum). Nothing is as low as the bound of the maxima:
  // they keep a compiler from reckoning that sum - a is b.
  ft_lost: {
    text: `
fn ft_lost(a: f32, b: f32, sum: f32) -> f32 {
  let whole = max(sum, -3.4e38);
  let back = max(whole - a, -3.4e38);
  return (a - (whole - back)) + (b - back);
}`,
  },
  // The sum of two numbers of two floats each.
  ft_joined: {
    needs: ["ft_lost"],
    text: `
fn ft_joined(a: vec2f, b: vec2f) -> vec2f {
  let sum = a.x + b.x;
  return vec2f(sum, a.y + b.y + ft_lost(a.x, b.x, sum));
}`,
  },
  // 2^(x + low - whole - rest), at most 2.8, for a whole number `whole`: no sum of them is rounded but near 0.
  ft_power: {
    text: `
fn ft_power(x: f32, low: f32, whole: f32, rest: f32) -> f32 {
  let n = round(x);
  let part = (x - n) + (low - rest);
  let more = round(part);
  let e = n - whole + more;
  let r = part - more;
${exp2Near0}
  let scaled = y * bitcast<f32>(u32(i32(clamp(e, -126.0, 1.0)) + 127) << 23u);
  return select(scaled, 0.0, e < -126.0);
}`,
  },
  ft_log: {
    needs: ["ft_inf", "ft_nan", "ft_is_nan"],
    text: `
fn ft_log(x: f32) -> f32 {
  let small = x < 1.17549435e-38;
  let bits = bitcast<u32>(select(x, x * 8388608.0, small));
  var e = i32(bits >> 23u) - 126 - select(0, 23, small);
  var m = bitcast<f32>((bits & 0x7fffffu) | 0x3f000000u);
  if (m < 0.707106781) { e -= 1; m = m + m; }
  m = m - 1.0;
  let z = m * m;
  var p = fma(m, 7.0376836292e-2, -1.1514610310e-1);
  p = fma(p, m, 1.1676998740e-1);
  p = fma(p, m, -1.2420140846e-1);
  p = fma(p, m, 1.4249322787e-1);
  p = fma(p, m, -1.6668057665e-1);
  p = fma(p, m, 2.0000714765e-1);
  p = fma(p, m, -2.4999993993e-1);
  p = fma(p, m, 3.3333331174e-1);
  let k = f32(e);
  var y = m * z * p;
  y = fma(k, -2.12194440e-4, y);
  y = fma(z, -0.5, y);
  let r = fma(k, 0.693359375, m + y);
  let whole = bitcast<u32>(x);
  if (ft_is_nan(x) || whole == 0x7f800000u) { return x; }
  if ((whole & 0x7fffffffu) == 0u) { return -ft_inf(); }
  return select(r, ft_nan(), x < 0.0);
}`,
  },
  ft_tanh: {
    needs: ["ft_exp"],
    text: `
fn ft_tanh(x: f32) -> f32 {
  let a = abs(x);
  if (a < 0.625) {
    let z = x * x;
    var p = fma(z, -5.70498872745e-3, 2.06390887954e-2);
    p = fma(p, z, -5.37397155531e-2);
    p = fma(p, z, 1.33314422036e-1);
    p = fma(p, z, -3.33332819422e-1);
    return fma(p * z, x, x);
  }
  let y = 1.0 - 2.0 / (ft_exp(2.0 * min(a, 20.0)) + 1.0);
  if (ft_is_nan(x)) { return x; }
  return select(y, -y, x < 0.0);
}`,
  },
  ft_sigmoid: {
    needs: ["ft_exp"],
    text: `
fn ft_sigmoid(x: f32) -> f32 {
  let e = ft_exp(-abs(x));
  return select(1.0, e, x < 0.0) / (1.0 + e);
}`,
  },
  // e^(−z²) with the rounding of z² put back, times a rational fit of relative error 1.2e-7.
  ft_erfc_positive: {
    needs: ["ft_exp"],
    text: `
fn ft_erfc_positive(z: f32) -> f32 {
  let square = z * z;
  let rest = fma(z, z, -square);
  let t = 1.0 / fma(0.5, z, 1.0);
  var p = fma(t, 0.17087277, -0.82215223);
  p = fma(p, t, 1.48851587);
  p = fma(p, t, -1.13520398);
  p = fma(p, t, 0.27886807);
  p = fma(p, t, -0.18628806);
  p = fma(p, t, 0.09678418);
  p = fma(p, t, 0.37409196);
  p = fma(p, t, 1.00002368);
  return t * ft_exp(-square) * ft_exp(fma(p, t, -1.26551223) - rest);
}`,
  },
  ft_erf: {
    needs: ["ft_erfc_positive", "ft_is_nan"],
    text: `
fn ft_erf(x: f32) -> f32 {
  let z = abs(x);
  if (ft_is_nan(x)) { return x; }
  if (z < 1.0) {
    let s = x * x;
    var p = fma(s, 7.853861353153693e-5, -8.010193625184903e-4);
    p = fma(p, s, 5.188327685732524e-3);
    p = fma(p, s, -2.685381193529856e-2);
    p = fma(p, s, 1.128358514861418e-1);
    p = fma(p, s, -3.761262582423300e-1);
    return fma(x, fma(p, s, 0.128379165726710), x); // 2/√π − 1: its rounding counts an eighth
  }
  let y = 1.0 - ft_erfc_positive(min(z, 6.0));
  return select(y, -y, x < 0.0);
}`,
  },
  ft_gelu: {
    needs: ["ft_erf", "ft_erfc_positive", "ft_is_nan", "ft_inf"],
    text: `
fn ft_gelu(x: f32) -> f32 {
  if (ft_is_nan(x)) { return x; }
  let z = x * 0.70710678118;
  if (z > -1.0) { return 0.5 * x * (1.0 + ft_erf(z)); }
  return select(0.5 * x * ft_erfc_positive(min(-z, 11.0)), -0.0, x == -ft_inf());
}`,
  },
  ft_gelu_tanh: {
    needs: ["ft_sigmoid"],
    text: `
fn ft_gelu_tanh(x: f32) -> f32 {
  return x * ft_sigmoid(1.5957691216 * fma(0.044715 * x, x * x, x));
}`,
  },
  ft_mulhi: {
    text: `
fn ft_mulhi(a: u32, b: u32) -> u32 {
  let al = a & 0xffffu; let ah = a >> 16u;
  let bl = b & 0xffffu; let bh = b >> 16u;
  let low = al * bl;
  let m1 = ah * bl + (low >> 16u);
  let m2 = al * bh + (m1 & 0xffffu);
  return ah * bh + (m1 >> 16u) + (m2 >> 16u);
}`,
  },
  // x mod π/2 for large x (Payne and Hanek 1983): the 24 bits of x times the 96 bits of 2/π that matter at its size,
  // modulo 4. Gives the remainder in y and the quadrant in x.
  ft_far_quadrant: {
    needs: ["ft_mulhi"],
    text: `
const ft_two_over_pi = array<u32, 9>(0u, 0xA2F9836Eu, 0x4E441529u, 0xFC2757D1u, 0xF534DDC0u, 0xDB629599u, 0x3C439041u,
  0xFE5163ABu, 0xDEBBC561u);
fn ft_far_quadrant(x: f32) -> vec2f {
  let bits = bitcast<u32>(x);
  let m = (bits & 0x7fffffu) | 0x800000u;
  let start = ((bits >> 23u) & 0xffu) - 150u + 30u;
  var table = ft_two_over_pi;
  var w: array<u32, 3>;
  let at = start >> 5u; let shift = start & 31u;
  for (var i = 0u; i < 3u; i++) {
    w[i] = (table[at + i] << shift) | select(0u, table[at + i + 1u] >> (32u - shift), shift != 0u);
  }
  let low = m * w[1];
  let r1 = low + ft_mulhi(m, w[2]);
  let r0 = m * w[0] + ft_mulhi(m, w[1]) + select(0u, 1u, r1 < low);
  let fraction = (r0 << 2u) | (r1 >> 30u);
  let q = (r0 >> 30u) + (fraction >> 31u);
  // The fraction in two parts, of 24 bits and of what follows, times π/2 · 2^-32 in two parts.
  let whole = bitcast<i32>(fraction);
  let high = f32(whole);
  let rest = fma(f32(r1 << 2u), 2.3283064365386963e-10, f32(whole - i32(high)));
  let r = fma(high, 3.65729529994141e-10, fma(rest, 3.65729529994141e-10, high * -1.017735066980541e-17));
  return select(vec2f(f32(q), r), vec2f(-f32(q), -r), x < 0.0);
}`,
  },
  // Up to 2000 the product of the quadrant with each part of π/2 is exact and the parts left out do not show.
  ft_sin_quadrant: {
    needs: ["ft_nan", "ft_far_quadrant"],
    text: `
fn ft_sin_quadrant(x: f32, shift: i32) -> f32 {
  if ((bitcast<u32>(x) & 0x7f800000u) == 0x7f800000u) { return ft_nan(); }
  let n = round(x * 0.63661977236);
  var k = i32(clamp(n, -1.0e6, 1.0e6));
  var r = fma(n, -1.5703125, x);
  r = fma(f32(k), -4.837512969970703125e-4, r); // by way of i32, or a driver adds the parts of π/2 up again
  r = fma(f32(u32(abs(k))) * select(1.0, -1.0, k < 0), -7.54978995489188216e-8, r);
  if (abs(x) > 2.0e3) {
    let far = ft_far_quadrant(x);
    k = i32(far.x);
    r = far.y;
  }
  let q = (k + shift) & 3;
  let z = r * r;
  var s = fma(z, -1.9515295891e-4, 8.3321608736e-3);
  s = fma(s, z, -1.6666654611e-1);
  s = fma(s * z, r, r);
  var c = fma(z, 2.443315711809948e-5, -1.388731625493765e-3);
  c = fma(c, z, 4.166664568298827e-2);
  c = fma(c, z * z, fma(z, -0.5, 1.0));
  let y = select(s, c, (q & 1) == 1);
  return select(y, -y, q > 1);
}`,
  },
  ft_sin: { needs: ["ft_sin_quadrant"], text: `fn ft_sin(x: f32) -> f32 { return ft_sin_quadrant(x, 0); }` },
  ft_cos: { needs: ["ft_sin_quadrant"], text: `fn ft_cos(x: f32) -> f32 { return ft_sin_quadrant(x, 1); }` },
  // Small whole powers are products; others e^(b log a), with the sign and edge cases of IEEE 754.
  ft_pow: {
    needs: ["ft_exp", "ft_log", "ft_nan", "ft_inf", "ft_is_nan"],
    text: `
fn ft_pow(a: f32, b: f32) -> f32 {
  if (b == 0.0) { return 1.0; }
  if (ft_is_nan(a) || ft_is_nan(b)) { return ft_nan(); }
  let whole = trunc(b) == b;
  let size = abs(b);
  if (whole && size <= 16.0) {
    var y = 1.0;
    for (var i = 0.0; i < size; i += 1.0) { y *= a; }
    return select(y, 1.0 / y, b < 0.0);
  }
  if (a < 0.0 && !whole && a > -ft_inf()) { return ft_nan(); }
  let odd = whole && size < 16777216.0 && (i32(size) & 1) == 1;
  let negative = (bitcast<u32>(a) >> 31u) == 1u && odd;
  let m = abs(a);
  if (m == 1.0 && bitcast<u32>(size) == 0x7f800000u) { return ft_nan(); }
  var y = ft_exp(b * ft_log(m));
  if (m == 0.0) { y = select(0.0, ft_inf(), b < 0.0); }
  return select(y, -y, negative);
}`,
  },
  ft_max: {
    needs: ["ft_is_nan"],
    text: `fn ft_max(a: f32, b: f32) -> f32 { return select(select(max(a, b), b, ft_is_nan(b)), a, ft_is_nan(a)); }`,
  },
  ft_min: {
    needs: ["ft_is_nan"],
    text: `fn ft_min(a: f32, b: f32) -> f32 { return select(select(min(a, b), b, ft_is_nan(b)), a, ft_is_nan(a)); }`,
  },
  ft_to_i32: {
    needs: ["ft_is_nan"],
    text: `
fn ft_to_i32(x: f32) -> i32 {
  if (ft_is_nan(x)) { return 0; }
  if (x >= 2147483648.0) { return 2147483647; }
  if (x < -2147483648.0) { return -2147483647 - 1; }
  return i32(x);
}`,
  },
  ft_to_u32: {
    needs: ["ft_is_nan"],
    text: `
fn ft_to_u32(x: f32) -> u32 {
  if (ft_is_nan(x) || x <= 0.0) { return 0u; }
  if (x >= 4294967296.0) { return 0xffffffffu; }
  return u32(x);
}`,
  },
};

/** The text of every `ft_…` function that a piece of WGSL calls, each once, callees first. */
export function mathFunctions(text: string): string {
  const out: string[] = [], seen = new Set<string>();
  const add = (name: string) => {
    if (seen.has(name)) return;
    seen.add(name);
    functions[name].needs?.forEach(add);
    out.push(functions[name].text);
  };
  for (const [name] of text.matchAll(/\bft_\w+(?=\()/g)) if (Object.hasOwn(functions, name)) add(name);
  return out.join("\n");
}
