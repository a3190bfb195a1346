# Translates kernel files (kernels/*.k) for one of the languages that they are written for; README.md of this folder has the grammar.
#   awk -f kernels.awk -v mode=c      FILE...             gpu_kernels.h: ids, structs of constants and calls, the table of kernels
#   awk -f kernels.awk -v mode=cl     FILE                a C string for the OpenCL compiler, each kernel between #ifdef KERNEL_name and #endif
#   awk -f kernels.awk -v mode=text   FILE                a C string, as it is
#   awk -f kernels.awk -v mode=list   FILE                names of the kernels that Vulkan has
#   awk -f kernels.awk -v mode=glsl -v kernel=NAME FILE   the GLSL of one kernel; with BK_BDA defined it takes addresses, else bindings
# A file named in a line `uses NAME` is NAME.kh beside FILE; it may use others in turn.

function fail(text) { printf "%s:%d: %s\n", FILENAME, FNR, text > "/dev/stderr"; failed = 1; exit 1 }

function base(path) { sub(/.*\//, "", path); return path }

# ---- output: mode cl collects lines, the others print ----
function quote(line) { gsub(/\\/, "&&", line); gsub(/"/, "\\\"", line); return "\"" line "\\n\"" }
function put(line) { if (mode == "cl") print quote(line); else print line }

function put_functions(path,    line, number, inside) {
  if (path in included) return
  included[path] = 1
  number = 0
  while ((getline line < path) > 0) {
    number++
    if (line ~ /^uses /) { split(line, words, " "); put_functions(folder words[2] ".kh"); put("#line " (number + 1) place(path)) }
    else if (line ~ /^functions/) { inside = 1; put("#line " (number + 1) place(path)) }
    else if (line ~ /^end/) inside = 0
    else if (inside) put(line)
  }
  if (number == 0) fail("cannot read " path)
  close(path)
}
# GLSL has no file names in #line
function place(path) { return mode == "glsl" ? "" : " \"" base(path) "\"" }

# ---- one kernel's head ----
function begin_kernel(name) {
  state = "head"; kname = name; nc = 0; no = 0; np = 0; nl = 0; only = ""
  consts[nc++] = "GROUP"
}
function head_line(    i, word) {
  word = $1
  if (word == "only") only = $2
  else if (word == "const") for (i = 2; i <= NF; i++) consts[nc++] = $i
  else if (word == "in" || word == "out" || word == "inout") {
    for (i = 3; i <= NF; i++) { otype[no] = $2; odir[no] = word; oname[no++] = $i }
    if ($2 != "f32" && $2 != "i32" && $2 !~ /^st(:[A-Z0-9_]+)?$/) fail("operand type " $2)
  }
  else if (word == "int" || word == "float") for (i = 2; i <= NF; i++) { gsub(/,/, "", $i); ptype[np] = word; pname[np++] = $i }
  else if (word == "local") { sub(/^[ \t]*local[ \t]+/, ""); sub(/;[ \t]*$/, ""); locals[nl++] = $0 }
  else if (word != "" && word !~ /^\/\//) fail("unknown line in the head of kernel " kname ": " $0)
}
# bf16 of an operand: the constant that says so
function is_half(i,    parts) { if (otype[i] !~ /^st/) return "0"; return split(otype[i], parts, ":") == 2 ? parts[2] : "BF16" }

# its number; 0 (GROUP) for "0"
function const_index(name,    i) {
  if (name == "0") return 0
  for (i = 1; i < nc; i++) if (consts[i] == name) return i
  fail("kernel " kname " has no constant " name)
}

# ---- C ----
function c_kernel(    i, line) {
  if (nc > 12 || no > 12 || np > 24) fail("kernel " kname ": " nc " constants, " no " operands, " np " parameters; 12, 12 and 24 are the most")
  printf "\n/* %s */\ntypedef struct bk_gpu_%s_consts {\n  int32_t ", base(FILENAME), kname
  for (i = 0; i < nc; i++) printf "%s%s", consts[i], i + 1 < nc ? ", " : ";\n"
  printf "} bk_gpu_%s_consts;\ntypedef struct bk_gpu_%s_call {\n", kname, kname
  if (no) { printf "  bk_place "; for (i = 0; i < no; i++) printf "%s%s", oname[i], i + 1 < no ? ", " : ";\n" }
  for (i = 0; i < np; i++) printf "  %s %s;\n", ptype[i] == "int" ? "int32_t" : "float", pname[i]
  printf "} bk_gpu_%s_call;\n", kname
  names[kernels] = kname
  line = "  {\"" kname "\", \"" base(FILENAME) "\", " nc ", {"
  for (i = 0; i < nc; i++) line = line "\"" consts[i] "\"" (i + 1 < nc ? ", " : "}, ")
  line = line no ", " np ", " (only == "" ? 3 : only == "opencl" ? 1 : 2) ", {"
  for (i = 0; i < no; i++) line = line const_index(is_half(i)) (i + 1 < no ? ", " : "")
  line = line (no ? "}}," : "0}},")
  rows[kernels++] = line
}
function c_end(    i) {
  printf "\nenum {\n"
  for (i = 0; i < kernels; i++) printf "  BK_GPU_%s,\n", names[i]
  printf "  BK_GPU_KERNEL_COUNT\n};\n\n/* rows of bk_gpu_kernel_table */\n#define BK_GPU_KERNEL_ROWS"
  for (i = 0; i < kernels; i++) printf " \\\n%s", rows[i]
  printf "\n\n#endif\n"
}

# ---- OpenCL C ----
function cl_accessors(i,    t, half, n, at, q) {
  n = oname[i]; half = is_half(i); q = odir[i] == "in" ? "const " : ""
  put("#undef get_" n); put("#undef set_" n)
  if (otype[i] == "i32") {
    put("#define get_" n "(i) (((__global const int *)" n "_)[i])")
    put("#define set_" n "(i, v) ((__global int *)" n "_)[i] = (v)")
  } else if (half == "0") {
    put("#define get_" n "(i) (((__global const float *)" n "_)[i])")
    put("#define set_" n "(i, v) ((__global float *)" n "_)[i] = (v)")
  } else {
    put("#if " half); put("#define get_" n "(i) bf16_to_f32(((__global const ushort *)" n "_)[i])")
    put("#define set_" n "(i, v) ((__global ushort *)" n "_)[i] = (ushort)f32_to_bf16(v)")
    put("#else"); put("#define get_" n "(i) (((__global const float *)" n "_)[i])")
    put("#define set_" n "(i, v) ((__global float *)" n "_)[i] = (v)"); put("#endif")
  }
}
function cl_begin(    i, line) {
  put("#ifdef KERNEL_" kname)
  for (i = 0; i < no; i++) cl_accessors(i)
  put("__attribute__((reqd_work_group_size(GROUP, 1, 1)))")
  line = "__kernel void " kname "("
  for (i = 0; i < no; i++) line = line "__global " (odir[i] == "in" ? "const " : "") "uchar *" oname[i] "_, ulong " oname[i] "_at_, "
  for (i = 0; i < np; i++) line = line ptype[i] " " pname[i] ", "
  put(line "int groups_) {")
  for (i = 0; i < nl; i++) put("  __local " locals[i] ";")
  for (i = 0; i < no; i++) put("  " oname[i] "_ += " oname[i] "_at_;")
  put("  if (BLOCK >= groups_) return;")
  put("#line " (FNR + 1) place(FILENAME))
}
function cl_end() { put("}"); put("#endif") }

# ---- GLSL ----
function gl_split_blocks(i,    b, n) {
  n = oname[i]; b = "layout(set = 0, binding = " i ", std430) buffer "
  if (otype[i] == "i32") put(b n "_I_ { int v[]; } " n "_i_;")
  else {
    put(b n "_F_ { float v[]; } " n "_f_;")
    if (is_half(i) != "0") { put("#ifndef BK_NO_16BIT"); put(b n "_H_ { uint16_t v[]; } " n "_h_;"); put("#endif") }
  }
}
function gl_accessors(i,    n, half, w) {
  n = oname[i]; half = is_half(i); w = odir[i] != "in"
  if (otype[i] == "i32") {
    put("#ifdef BK_BDA"); put("#define AT_(i) BkInts(" n "_at_).v[i]"); put("#else"); put("#define AT_(i) " n "_i_.v[int(" n "_at_) + (i)]"); put("#endif")
    put("int get_" n "(int i) { return AT_(i); }")
    if (w) put("void set_" n "(int i, int v) { AT_(i) = v; }")
    put("#undef AT_"); return
  }
  put("#ifdef BK_BDA"); put("#define AT_(i) BkFloats(" n "_at_).v[i]"); put("#define HALF_(i) BkHalves(" n "_at_).v[i]"); put("#else")
  put("#define AT_(i) " n "_f_.v[int(" n "_at_) + (i)]"); put("#define HALF_(i) " n "_h_.v[int(" n "_at_) + (i)]"); put("#endif")
  if (half != "0") {
    put("#ifndef BK_NO_16BIT")
    put("float get_" n "(int i) { if (" half " != 0) return bf16_to_f32(uint(HALF_(i))); else return AT_(i); }")
    if (w) put("void set_" n "(int i, float v) { if (" half " != 0) HALF_(i) = uint16_t(f32_to_bf16(v)); else AT_(i) = v; }")
    put("#else")
  }
  put("float get_" n "(int i) { return AT_(i); }")
  if (w) put("void set_" n "(int i, float v) { AT_(i) = v; }")
  if (half != "0") put("#endif")
  put("#undef AT_"); put("#undef HALF_")
}
function put_file(path,    line, any) {
  while ((getline line < path) > 0) { any = 1; put(line) }
  if (!any) fail("cannot read " path)
  close(path)
}
function gl_begin(    i) {
  put("#version 450"); put_file(folder "vulkan.glsl"); put_functions(folder "math.kh")
  if (8 * no + 4 * np + 4 > 128) fail("kernel " kname " has " (8 * no + 4 * np + 4) " bytes of operands and parameters; Vulkan promises 128")
  put("layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;")
  for (i = 0; i < nc; i++) put("layout(constant_id = " i ") const int " consts[i] " = " (i == 0 ? 64 : 1) ";")
  put("layout(push_constant) uniform Parameters_ {")
  put("#ifdef BK_BDA")
  for (i = 0; i < no; i++) put("  uvec2 " oname[i] "_at_;")
  put("#else")
  for (i = 0; i < no; i++) put("  uint " oname[i] "_at_;")
  put("#endif")
  for (i = 0; i < np; i++) put("  " ptype[i] " " pname[i] ";")
  put("  int groups_;"); put("};")
  put("#ifndef BK_BDA")
  for (i = 0; i < no; i++) gl_split_blocks(i)
  put("#endif")
  for (i = 0; i < no; i++) gl_accessors(i)
  for (i = 0; i < nl; i++) put("shared " locals[i] ";")
  for (i = 0; i < nu; i++) put_functions(folder used[i] ".kh")
  printf "%s", own_functions
  put("void main() {"); put("  if (BLOCK >= groups_) return;"); put("#line " (FNR + 1))
}

BEGIN { kernels = 0; state = "outside" }
mode == "text" { print quote($0); next } # a C string
FNR == 1 {
  folder = FILENAME
  if (!sub(/[^\/]*$/, "", folder)) folder = ""
  if (mode == "cl") put("#line 1" place(FILENAME))
  nu = 0; own_functions = ""; state = "outside"
}
mode == "c" && NR == 1 {
  print "/* Made by kernels.awk from backends/gpu/kernels: do not edit. */\n#ifndef BK_GPU_KERNELS_H\n#define BK_GPU_KERNELS_H"
}
state == "outside" && /^uses / { if (mode == "cl") put_functions(folder $2 ".kh"); used[nu++] = $2; next }
state == "outside" && /^functions/ { state = "functions"; if (mode == "cl") put("#line " (FNR + 1) place(FILENAME)); own_functions = own_functions "#line " (FNR + 1) "\n"; next }
state == "functions" && /^end/ { state = "outside"; next }
state == "functions" { if (mode == "cl") put($0); own_functions = own_functions $0 "\n"; next }
state == "outside" && /^kernel / { begin_kernel($2); next }
state == "head" && /^begin/ {
  state = "body"
  wanted = mode == "glsl" && kernel == kname
  if (mode == "c") c_kernel()
  if (mode == "list" && only != "opencl") print kname
  if (mode == "cl" && only != "vulkan") cl_begin()
  if (wanted) { found = 1; gl_begin() }
  next
}
state == "head" { head_line(); next }
state == "body" && /^end/ {
  state = "outside"
  if (mode == "cl" && only != "vulkan") cl_end()
  if (wanted) put("}")
  next
}
state == "body" { if ((mode == "cl" && only != "vulkan") || wanted) put($0); next }
state == "outside" && /^[^ \t\/*]/ { fail("outside of kernels and functions: " $0) }
END {
  if (failed) exit 1
  if (mode == "text") exit 0
  if (state != "outside") { printf "%s: %s is not ended\n", FILENAME, state > "/dev/stderr"; exit 1 }
  if (mode == "c") c_end()
  if (mode == "glsl" && !found) { printf "%s: no kernel %s\n", FILENAME, kernel > "/dev/stderr"; exit 1 }
}
