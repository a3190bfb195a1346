# Reads the words of a SPIR-V module, as glslc -mfmt=num writes them, and writes them with NoContraction on all sums, differences and
# products, which keeps a driver's compiler from reordering them: Mesa turns (a + b) - a into b, and what compensates rounding errors into
# nothing. Products that are added have become OpExtInst Fma before, in glslc -O; these stay.
function number(hex,    i, n) { # four digits
  n = 0
  for (i = 1; i <= 4; i++) n = n * 16 + index("0123456789abcdef", substr(hex, i, 1)) - 1
  return n
}
{
  n_words = split(tolower($0), words, ",")
  for (i = 1; i <= n_words; i++) if (words[i] ~ /0x/) { gsub(/[ \t]/, "", words[i]); word[n++] = words[i] }
}
END {
  if (word[0] != "0x07230203") { print "spirv.awk: this is not SPIR-V" > "/dev/stderr"; exit 1 }
  first_type = 0
  for (i = 5; i < n; i += length_) {
    length_ = number(substr(word[i], 3, 4))
    op = substr(word[i], 7, 4)
    if (length_ == 0) { print "spirv.awk: an instruction of no length" > "/dev/stderr"; exit 1 }
    if (!first_type && op >= "0013" && op <= "0027") first_type = i
    if (op == "0081" || op == "0083" || op == "0085") exact[n_exact++] = word[i + 2] # OpFAdd, OpFSub, OpFMul
  }
  for (i = 0; i < n; i++) {
    if (i == first_type) for (k = 0; k < n_exact; k++) printf "0x00030047,%s,0x0000002a,\n", exact[k] # OpDecorate id NoContraction
    printf "%s,%s", word[i], i % 8 == 7 ? "\n" : ""
  }
  print ""
}
